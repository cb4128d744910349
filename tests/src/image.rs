//! Makes the files of a container image from programs of this machine and the libraries that they load. No registry is
//! needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process::run;

/// Creates an image's files: these programs, and root as the only user.
pub fn make_root(root: &Path, programs: &[&str]) -> Result<()> {
    for folder in ["bin", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    for program in programs {
        let path = run(Command::new("which").arg(program))?;
        let path = Path::new(path.trim());
        fs::copy(path, root.join("bin").join(program))?;
        for library in libraries(path)? {
            let inside = root.join(library.strip_prefix("/")?);
            let folder = inside.parent().context("a library's path has no folder")?;
            fs::create_dir_all(folder)?;
            fs::copy(&library, &inside).with_context(|| library.display().to_string())?;
        }
    }
    Ok(())
}

/// The files that a program loads, with the loader; none if the program is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the loader's path alone.
    let words = text.split_whitespace();
    Ok(words
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}
