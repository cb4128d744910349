//! What an operator types if packets of a source should not be dropped.

use std::{net::IpAddr, path::Path};

use guard_common::reason::Reason;

use super::{Destination, ExplainInput};
use crate::policy::{Source, Treatment, is_single};

/// A packet that was dropped, for which an operator needs advice.
pub struct Advisor<'a> {
    pub situation: &'a ExplainInput<'a>,
    pub from: IpAddr,
    pub service: Option<&'a str>,
    pub to: &'a Destination,
    /// The policy file in force, if it is known.
    pub file: Option<&'a Path>,
}

impl Advisor<'_> {
    /// What to type if packets of the source should not be dropped for this reason.
    pub fn for_reason(&self, reason: Reason) -> Option<String> {
        let (from, at) = (self.from, self.at(self.service));
        Some(match reason {
            Reason::ClosedPort => format!(
                "to open the port, list it in the policy: `ports = [\"{}\"]` in a [[service]], with `from = [\"{from}\"]` \
                 if only this source is to reach it; then `guard try` the file",
                self.to.ports
            ),
            Reason::SourceNotAllowed => format!(
                "if this source may use it, add \"{from}\" to `from` of the service; until then: `guard allow \
                 {from}{at} --for 2h`"
            ),
            Reason::PacketLimit | Reason::ByteLimit | Reason::ConnectionLimit => format!(
                "if it is a real user: `guard allow {from}{at} --for 2h` lifts its budgets now; for good, {}",
                self.larger_budgets()
            ),
            Reason::TotalLimit => {
                "`guard top` shows who uses up the total; `guard deny CIDR --for 2h` drops a source"
                    .to_owned()
            }
            Reason::DeniedSource => self.for_denial(self.situation.denying_source(from)),
            _ => return None,
        })
    }

    /// What to type if packets of the source should not be dropped by this deny entry.
    pub fn for_entry(&self, id: u64) -> Option<String> {
        let mut entries = self.situation.entries.iter();
        let entry = entries.find(|entry| entry.id == id)?;
        if is_single(&entry.prefix) {
            return Some(format!("`guard revoke {id}` ends the entry"));
        }
        Some(format!(
            "`guard revoke {id}` ends it for all of {}; `guard allow {}{} --for 2h` is an exception for this address \
             alone",
            entry.prefix,
            self.from,
            self.at(entry.service.as_deref())
        ))
    }

    fn at(&self, service: Option<&str>) -> String {
        let at = service.map(|service| format!(" --service {service}"));
        at.unwrap_or_default()
    }

    fn for_denial(&self, denial: Option<&Source>) -> String {
        let from = self.from;
        let exception = format!("`guard allow {from} --for 2h` is an exception for this address");
        match denial {
            Some(source) => format!(
                "{exception}; for good, change source \"{}\" (line {}) of the policy, which denies it",
                source.name, source.line
            ),
            None => exception,
        }
    }

    /// How the policy gives the source larger budgets. A prefix can have only one `factor`.
    fn larger_budgets(&self) -> String {
        let from = self.from;
        let special = self.situation.special_source(from);
        if let Some(source) = special
            && let Treatment::Factor(factor) = source.treatment
        {
            return format!(
                "raise `factor` of source \"{}\" (line {}), which is {factor}",
                source.name, source.line
            );
        }
        // A name has no colons.
        let name = format!("users-{from}").replace(':', "-");
        let file = self.file.map(|file| file.display().to_string());
        let file = file.unwrap_or_else(|| "FILE".to_owned());
        format!(
            "add a [[source]] with `factor`, and try it: `(cat {file}; printf '\\n[[source]]\\nname = \
             \"{name}\"\\ncidrs = [\"{from}\"]\\nfactor = 10\\n') > {file}.new && guard try {file}.new`, then `guard \
             confirm --write`"
        )
    }
}
