//! Reads a policy file. Other kinds of file (devices, sockets) are refused, a read never blocks for ever, and the size
//! is bounded.

use std::{
    fs::{self, File, FileType, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use nix::fcntl::OFlag;

use super::PolicyError;

/// The largest policy. A policy that lists a million addresses has about 20 MB.
const LARGEST_MIB: u64 = 64;
const LARGEST: u64 = LARGEST_MIB << 20;

/// The kinds of file that a policy may be. Symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedFile {
    /// For the agent: its loop must not wait for the writer of a pipe.
    Regular,
    /// For a command, where an operator may type `<(cmd)` or /dev/stdin: a pipe is read to its end.
    RegularOrPipe,
}

impl AllowedFile {
    fn require(self, found: &Metadata) -> io::Result<()> {
        let kind = found.file_type();
        let (is_allowed, right) = match self {
            Self::Regular => (kind.is_file(), "a regular file"),
            Self::RegularOrPipe => (kind.is_file() || kind.is_fifo(), "a regular file or a pipe"),
        };
        if is_allowed {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("it is {}, and a policy must be {right}", name(kind)),
        ))
    }
}

fn name(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_socket() => "a socket",
        _ => "not a regular file",
    }
}

/// Reads the bytes of a policy file. They need not be valid UTF-8.
///
/// # Errors
/// [`PolicyError::Unreadable`], also if the file is of another kind than `allowed`, or larger than 64 MiB.
pub fn read_file(path: &Path, allowed: AllowedFile) -> Result<Vec<u8>, PolicyError> {
    open(path, allowed)
        .and_then(read_bounded)
        .map_err(|error| PolicyError::Unreadable {
            file: path.display().to_string(),
            error,
        })
}

fn open(path: &Path, allowed: AllowedFile) -> io::Result<File> {
    let found = fs::metadata(path)?;
    // Checked before the file is opened: opening a device may already have an effect (/dev/watchdog).
    allowed.require(&found)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // Opening a named pipe without O_NONBLOCK waits for its writer, as a reader of a pipe expects.
    if !found.file_type().is_fifo() {
        options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    }
    let file = options.open(path)?;
    // Another file may have replaced it between metadata() and open().
    allowed.require(&file.metadata()?)?;
    Ok(file)
}

fn read_bounded(file: File) -> io::Result<Vec<u8>> {
    let too_large = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {LARGEST_MIB} MiB, the most for a policy"),
        )
    };
    if file.metadata()?.len() > LARGEST {
        return Err(too_large());
    }
    // A pipe has no length, and a file may grow while it is read.
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= LARGEST => Ok(bytes),
        _ => Err(too_large()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::symlink, net::UnixListener},
        thread,
        time::{Duration, Instant},
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn refusal(path: &Path, allowed: AllowedFile) -> String {
        read_file(path, allowed).unwrap_err().to_string()
    }

    #[test]
    fn a_file_of_another_kind_is_refused_by_name_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        symlink(at("fifo"), at("link")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        let started = Instant::now();
        for (path, kind) in [
            (folder.path().to_owned(), "a folder"),
            ("/dev/zero".into(), "a character device"),
            (at("socket"), "a socket"),
        ] {
            for (allowed, right) in [
                (AllowedFile::Regular, "a regular file"),
                (AllowedFile::RegularOrPipe, "a regular file or a pipe"),
            ] {
                assert_eq!(
                    refusal(&path, allowed),
                    format!(
                        "{}: cannot be read: it is {kind}, and a policy must be {right}; write a policy there, or \
                         name another file",
                        path.display()
                    )
                );
            }
        }
        // The pipe never has a writer.
        for name in ["fifo", "link"] {
            let refused = refusal(&at(name), AllowedFile::Regular);
            assert!(refused.contains("it is a named pipe"), "{refused}");
        }
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{:?}",
            started.elapsed()
        );
    }

    #[test]
    fn a_file_is_read_up_to_the_largest_size_and_not_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let file = File::create(&path).unwrap();
        for allowed in [AllowedFile::Regular, AllowedFile::RegularOrPipe] {
            file.set_len(LARGEST).unwrap();
            let bytes = read_file(&path, allowed).unwrap();
            assert_eq!(bytes.len() as u64, LARGEST);
            file.set_len(LARGEST + 1).unwrap();
            let refused = refusal(&path, allowed);
            assert!(refused.contains("it is larger than 64 MiB"), "{refused}");
        }
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        file.set_len(3).unwrap();
        assert_eq!(read_file(&link, AllowedFile::Regular).unwrap(), [0; 3]);
    }

    #[test]
    fn a_command_reads_a_pipe_to_its_end_and_within_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| fs::write(&path, "mode = \"off\"\n").unwrap());
            let bytes = read_file(&path, AllowedFile::RegularOrPipe).unwrap();
            assert_eq!(bytes, b"mode = \"off\"\n");
        });
        thread::scope(|scope| {
            // The reader closes the pipe before all is written.
            let writer = scope.spawn(|| {
                let mut pipe = OpenOptions::new().write(true).open(&path)?;
                io::copy(&mut io::repeat(b'#').take(2 * LARGEST), &mut pipe)
            });
            let refused = refusal(&path, AllowedFile::RegularOrPipe);
            assert!(refused.contains("it is larger than 64 MiB"), "{refused}");
            assert!(writer.join().unwrap().is_err());
        });
    }
}
