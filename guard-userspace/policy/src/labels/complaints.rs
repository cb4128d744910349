//! What containers ask for in vain, in a bounded number of bounded lines: whoever writes labels decides
//! neither how long the status is nor what stands in it.

use crate::untrusted;

/// How much is said of a container, how long each of it is, and how many lines there are of all.
const MOST_OF_CONTAINER: usize = 4;
const LONGEST: usize = 480;
const MOST: usize = 100;

/// Of a container's name.
const LONGEST_NAME: usize = 64;

/// Of one container.
#[derive(Default)]
pub struct Complaints {
    texts: Vec<String>,
    untold: usize,
}

impl Complaints {
    pub fn add(&mut self, text: String) {
        if self.texts.len() < MOST_OF_CONTAINER {
            self.texts.push(untrusted::one_line(&text, LONGEST));
        } else {
            self.untold += 1;
        }
    }
}

/// Of all containers.
#[derive(Default)]
pub struct Warnings {
    lines: Vec<String>,
    untold: usize,
}

impl Warnings {
    pub fn add(&mut self, container: &str, complaints: Complaints) {
        let Complaints { texts, untold } = complaints;
        let container = untrusted::name(container, LONGEST_NAME);
        let more = (untold != 0).then(|| format!("{untold} more of what it asks for is ignored"));
        for text in texts.into_iter().chain(more) {
            if self.lines.len() < MOST {
                self.lines.push(format!("container {container}: {text}"));
            } else {
                self.untold += 1;
            }
        }
    }

    pub fn end(self) -> Vec<String> {
        let Self { mut lines, untold } = self;
        if untold != 0 {
            lines.push(format!(
                "{untold} more of what the labels of containers ask for is ignored"
            ));
        }
        lines
    }
}
