//! Reads Docker's own files. Its API does not answer for a container while that starts, which is when the ports that it
//! will publish must be known. Docker writes them into a file when the container is created.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::answers::{HostConfig, is_identifier};

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The folder of Docker's containers; `None`: it is not known.
#[derive(Clone, Debug, Default)]
pub(super) struct Files(Option<PathBuf>);

impl Files {
    /// `root`: Docker's root folder, as the daemon reports it.
    pub fn below(root: Option<&str>) -> Self {
        let root = root.map(Path::new).filter(|root| root.is_absolute());
        Self(root.map(|root| root.join("containers")))
    }

    /// Reads the configuration of a container.
    ///
    /// # Errors
    /// There is no such file, or this process may not read it (Podman, a daemon without root).
    pub fn host_config(&self, id: &str) -> io::Result<HostConfig> {
        let Self(Some(folder)) = self else {
            return Err(io::ErrorKind::NotFound.into());
        };
        // The identifier becomes part of a path.
        if !is_identifier(id) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let text = read(&folder.join(id).join("hostconfig.json"))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Reads a small regular file, and no other kind of file: the daemon reports the path, and reading a FIFO or a device
/// might never end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    // The file may grow while it is read.
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= LARGEST) {
        Ok(text)
    } else {
        Err(io::ErrorKind::FileTooLarge.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, time::Instant};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn only_small_regular_files_are_read_and_nothing_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::below(root.path().to_str());
        let folder = |id: &str| {
            let folder = root.path().join("containers").join(id);
            fs::create_dir_all(&folder).unwrap();
            folder.join("hostconfig.json")
        };
        fs::write(folder("00fine"), r#"{"NetworkMode": "host"}"#).unwrap();
        let config = files.host_config("00fine").unwrap();
        assert_eq!(config.network_mode.as_deref(), Some("host"));

        let started = Instant::now();
        mkfifo(&folder("00fifo"), Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", folder("00zero")).unwrap();
        symlink(folder("00fine"), folder("00link")).unwrap();
        fs::create_dir(folder("00dir")).unwrap();
        let large = fs::File::create(folder("00large")).unwrap();
        large.set_len(1 << 40).unwrap();
        fs::write(folder("00text"), "{").unwrap();
        for id in [
            "00fifo",
            "00zero",
            "00link",
            "00dir",
            "00large",
            "00text",
            "00none",
            "../00fine",
            "",
            ".",
        ] {
            assert!(files.host_config(id).is_err(), "{id}");
        }
        // The root may be any text.
        for root in ["/dev/zero", "relative", ""] {
            assert!(Files::below(Some(root)).host_config("00fine").is_err());
        }
        assert!(Files::default().host_config("00fine").is_err());
        assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
    }
}
