//! Looks up the line number of an offset in a text.

/// The line ends of a text, so that the line of an offset takes a binary search instead of a count.
pub struct Lines(Vec<usize>);

impl Lines {
    /// Finds the line ends of a text.
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
