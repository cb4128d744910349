//! The texts of files, and places in them.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::OFlag;

use guard_text::Lines;

/// Larger than any file that a person writes.
const MAX_BYTES: u64 = 1 << 20;

pub const STANDARD_INPUT: &str = "-";

/// A problem, with its file and line.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}{problem}", location(file, *line))]
pub struct ComposeError {
    pub file: String,
    /// `None`: the problem is about the whole file.
    pub line: Option<usize>,
    pub problem: String,
}

fn location(file: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{file}:{line}: "),
        None => format!("{file}: "),
    }
}

impl ComposeError {
    /// A problem of a file as a whole.
    pub fn of_file(path: &Path, problem: impl Into<String>) -> Self {
        Self {
            file: path.display().to_string(),
            line: None,
            problem: problem.into(),
        }
    }
}

/// A file that has been read.
pub struct SourceFile {
    pub path: PathBuf,
    pub text: String,
    lines: Lines,
}

impl SourceFile {
    pub fn new(path: &Path, text: String) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            lines: Lines::new(&text),
            text,
        })
    }

    /// Reads a file, at most to the size limit.
    ///
    /// # Errors
    /// The file cannot be read, is a folder, pipe or device, is too large, is not UTF-8, or has a lone CR.
    pub fn read(path: &Path) -> Result<Arc<Self>, ComposeError> {
        let refused = |problem: String| ComposeError::of_file(path, problem);
        let unreadable = |error: std::io::Error| refused(format!("cannot be read: {error}"));
        let metadata = path.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(refused("is a folder: name a compose file".to_owned()));
        }
        if !metadata.is_file() {
            let problem = "is a pipe or a device, not a file: write - to read standard input";
            return Err(refused(problem.to_owned()));
        }
        // If a pipe has replaced the file since the check, a blocking open would wait for a writer.
        let mut options = File::options();
        let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        Self::read_from(path, options.open(path).map_err(unreadable)?)
    }

    /// Reads `-`, as in `docker compose -f -`.
    pub fn read_standard_input() -> Result<Arc<Self>, ComposeError> {
        Self::read_from(Path::new(STANDARD_INPUT), io::stdin().lock())
    }

    fn read_from(path: &Path, input: impl io::Read) -> Result<Arc<Self>, ComposeError> {
        let refused = |problem: String| ComposeError::of_file(path, problem);
        let mut bytes = Vec::new();
        let mut input = input.take(MAX_BYTES + 1);
        input
            .read_to_end(&mut bytes)
            .map_err(|error| refused(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(refused(format!("is longer than {} MiB", MAX_BYTES >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let before = &error.as_bytes()[..valid];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            ComposeError {
                line: Some(line),
                ..refused("is not UTF-8: save it as UTF-8".to_owned())
            }
        })?;
        let source = Self::new(path, text);
        match source.lone_return() {
            Some(place) => Err(place.error("has a CR inside a line: end lines with LF or CR LF")),
            None => Ok(source),
        }
    }

    /// The first CR without LF. YAML counts it as a line end, and editors do not.
    fn lone_return(self: &Arc<Self>) -> Option<Place> {
        let mut returns = self.text.match_indices('\r');
        let (offset, _) = returns.find(|(offset, _)| !self.text[offset + 1..].starts_with('\n'))?;
        Some(self.place(offset, offset))
    }

    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The line of an offset, counted from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.lines.line(offset)
    }

    /// The column of an offset, in characters, counted from 1.
    pub fn column(&self, offset: usize) -> usize {
        let before = &self.text[self.line_start(offset)..offset];
        before.chars().count() + 1
    }

    pub fn line_start(&self, offset: usize) -> usize {
        self.text[..offset].rfind('\n').map_or(0, |end| end + 1)
    }

    /// The offset after the line's LF.
    pub fn line_end(&self, offset: usize) -> usize {
        let rest = &self.text[offset..];
        rest.find('\n')
            .map_or(self.text.len(), |end| offset + end + 1)
    }

    /// The offset of the first word at or after an offset, outside of comments.
    pub fn next_word(&self, offset: usize) -> usize {
        let mut rest = self.text[offset..].trim_start();
        while rest.starts_with('#') {
            let end = rest.find('\n').unwrap_or(rest.len());
            rest = rest[end..].trim_start();
        }
        self.text.len() - rest.len()
    }

    pub fn place(self: &Arc<Self>, start: usize, end: usize) -> Place {
        let start = self.border(start);
        Place {
            source: Arc::clone(self),
            start,
            end: self.border(end).max(start),
        }
    }

    /// The character boundary at an offset, or the last before it.
    fn border(&self, offset: usize) -> usize {
        let offset = offset.min(self.text.len());
        let mut offsets = (0..=offset).rev();
        offsets
            .find(|offset| self.text.is_char_boundary(*offset))
            .unwrap_or(0)
    }
}

/// A range of a text, in bytes, on character boundaries.
#[derive(Clone)]
pub struct Place {
    pub source: Arc<SourceFile>,
    pub start: usize,
    pub end: usize,
}

impl Place {
    pub fn line(&self) -> usize {
        self.source.line(self.start)
    }

    pub fn column(&self) -> usize {
        self.source.column(self.start)
    }

    pub fn text(&self) -> &str {
        &self.source.text[self.start..self.end]
    }

    /// The text before it in its line.
    pub fn before(&self) -> &str {
        &self.source.text[self.source.line_start(self.start)..self.start]
    }

    pub fn error(&self, problem: impl Into<String>) -> ComposeError {
        ComposeError {
            file: self.source.name(),
            line: Some(self.line()),
            problem: problem.into(),
        }
    }

    pub fn is_at(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.source, &other.source) && self.start == other.start
    }
}
