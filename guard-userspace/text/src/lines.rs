//! The lines of a text that is read.

/// Where the lines of a text start, so that a place in it is looked up and not counted.
pub struct Lines(Vec<usize>);

impl Lines {
    pub fn new(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(ends.map(|(offset, _)| offset).collect())
    }

    /// The line of an offset, counted from 1.
    pub fn line(&self, offset: usize) -> usize {
        let Self(ends) = self;
        ends.partition_point(|end| *end < offset) + 1
    }
}
