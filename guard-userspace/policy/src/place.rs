//! Positions in a policy's text: the line that an error names, and the line where a name or port was used first.

use std::{collections::HashMap, net::IpAddr};

use guard_text::Lines;
use toml::Spanned;

use super::Ports;

/// An error message, and its position in the text in bytes.
#[derive(Debug)]
pub struct Problem {
    pub text: String,
    pub offset: usize,
}

impl Problem {
    pub fn at<T>(place: &Spanned<T>, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            offset: place.span().start,
        }
    }
}

/// Names that may be used only once.
pub struct Unique<'a> {
    what: &'static str,
    lines: &'a Lines,
    seen: HashMap<String, usize>,
}

impl<'a> Unique<'a> {
    pub fn new(what: &'static str, lines: &'a Lines) -> Self {
        Self {
            what,
            lines,
            seen: HashMap::new(),
        }
    }

    pub fn insert(&mut self, name: &Spanned<String>) -> Result<(), Problem> {
        let offset = name.span().start;
        match self.seen.insert(name.get_ref().clone(), offset) {
            None => Ok(()),
            Some(first) => {
                let problem = format!(
                    "{} named \"{}\" is already in line {}: use each name once",
                    self.what,
                    name.get_ref(),
                    self.lines.line(first)
                );
                Err(Problem::at(name, problem))
            }
        }
    }
}

/// The services that list each index of the port table, and on which address.
pub struct PortOwners<'a> {
    lines: &'a Lines,
    owners: Vec<String>,
    places: HashMap<u32, Vec<PortOwner>>,
}

struct PortOwner {
    address: Option<IpAddr>,
    /// An index into [`PortOwners::owners`].
    owner: usize,
    offset: usize,
}

impl<'a> PortOwners<'a> {
    pub fn new(lines: &'a Lines) -> Self {
        Self {
            lines,
            owners: Vec::new(),
            places: HashMap::new(),
        }
    }

    pub fn add_owner(&mut self, service: &Spanned<String>) -> usize {
        self.owners.push(service.get_ref().clone());
        self.owners.len() - 1
    }

    pub fn insert(
        &mut self,
        ports: &Ports,
        address: Option<IpAddr>,
        owner: usize,
        place: &Spanned<String>,
    ) -> Result<(), Problem> {
        for index in ports.indices() {
            let others = self.places.entry(index).or_default();
            let overlaps = |other: &&PortOwner| {
                other.address.is_none() || address.is_none() || other.address == address
            };
            if others.iter().any(|other| other.owner == owner) {
                continue;
            }
            if let Some(other) = others.iter().find(overlaps) {
                let problem = format!(
                    "{ports} is already listed by service \"{}\" in line {}: on one address a port \
                     belongs to one service",
                    self.owners[other.owner],
                    self.lines.line(other.offset)
                );
                return Err(Problem::at(place, problem));
            }
            others.push(PortOwner {
                address,
                owner,
                offset: place.span().start,
            });
        }
        Ok(())
    }
}
