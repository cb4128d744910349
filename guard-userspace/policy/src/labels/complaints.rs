//! Warnings about labels, in a bounded number of lines of bounded length: the author of labels must not control how
//! long the status is, nor forge its lines.

use crate::untrusted;

/// The most warnings for a container, the most characters of each, and the most lines for all containers.
const MOST_OF_CONTAINER: usize = 4;
const LONGEST: usize = 480;
const MOST: usize = 100;

/// The most characters of a container's name.
const LONGEST_NAME: usize = 64;

/// The warnings for one container.
#[derive(Default)]
pub struct Complaints {
    texts: Vec<String>,
    left_out: usize,
}

impl Complaints {
    pub fn add(&mut self, text: String) {
        if self.texts.len() < MOST_OF_CONTAINER {
            self.texts.push(untrusted::one_line(&text, LONGEST));
        } else {
            self.left_out += 1;
        }
    }
}

/// The warnings for all containers.
#[derive(Default)]
pub struct Warnings {
    lines: Vec<String>,
    left_out: usize,
}

impl Warnings {
    pub fn add(&mut self, container: &str, complaints: Complaints) {
        let Complaints { texts, left_out } = complaints;
        let container = untrusted::name(container, LONGEST_NAME);
        let more = (left_out != 0).then(|| format!("{left_out} more about its labels, not shown"));
        for text in texts.into_iter().chain(more) {
            if self.lines.len() < MOST {
                self.lines.push(format!("container {container}: {text}"));
            } else {
                self.left_out += 1;
            }
        }
    }

    pub fn end(self) -> Vec<String> {
        let Self {
            mut lines,
            left_out,
        } = self;
        if left_out != 0 {
            lines.push(format!(
                "{left_out} more about the labels of containers, not shown"
            ));
        }
        lines
    }
}
