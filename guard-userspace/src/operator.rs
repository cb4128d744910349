//! The operator's own way in: the SSH session that a command comes from.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, iter,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use nix::unistd::{Uid, User};
use procfs::process::Process;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What sshd tells the shell of its session: the client's address and port, the server's address and
/// port (ssh(1)).
const VARIABLE: &str = "SSH_CONNECTION";

/// Nobody nests shells deeper.
const MAX_ANCESTORS: usize = 256;

/// An SSH session to this host. IPv4 is never written as IPv6, and addresses have no zone.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SshSession {
    #[schema(value_type = String)]
    pub client: SocketAddr,
    #[schema(value_type = String)]
    pub server: SocketAddr,
}

impl fmt::Display for SshSession {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, server } = self;
        let (from, to) = (client.ip(), server.ip());
        write!(formatter, "{from} {} {to} {}", client.port(), server.port())
    }
}

/// What is no SSH session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no SSH session: it takes a client's address and port, and a server's")]
pub struct NoSession;

impl FromStr for SshSession {
    type Err = NoSession;

    /// Parses `198.51.100.7 50000 203.0.113.10 22`.
    fn from_str(text: &str) -> Result<Self, NoSession> {
        let mut words = text.split_ascii_whitespace();
        let mut end = || {
            let address = parse_address(words.next()?)?;
            let port = words.next()?.parse().ok().filter(|port| *port != 0)?;
            Some(SocketAddr::new(address, port))
        };
        let session = Self {
            client: end().ok_or(NoSession)?,
            server: end().ok_or(NoSession)?,
        };
        words.next().is_none().then_some(session).ok_or(NoSession)
    }
}

/// An address, perhaps with a zone: `fe80::1%eth0`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let address = text.split_once('%').map_or(text, |(address, _)| address);
    Some(address.parse::<IpAddr>().ok()?.to_canonical())
}

/// The SSH session that this process was started from, if it was. sudo and su take the variable away,
/// so the ancestors are asked too, the nearest first.
pub fn ssh_session() -> Option<SshSession> {
    let own = env::var_os(VARIABLE);
    let environments = iter::once(own).chain(ancestors().map(|process| variable_of(&process)));
    environments.flatten().find_map(|value| parse(&value))
}

fn parse(value: &OsStr) -> Option<SshSession> {
    value.to_str()?.parse().ok()
}

/// `None` also for a process whose environment may not be read.
fn variable_of(process: &Process) -> Option<OsString> {
    process.environ().ok()?.remove(OsStr::new(VARIABLE))
}

fn ancestors() -> impl Iterator<Item = Process> {
    let parent = |process: &Process| Process::new(process.stat().ok()?.ppid).ok();
    let own = Process::myself().ok();
    let first = own.as_ref().and_then(parent);
    iter::successors(first, parent).take(MAX_ANCESTORS)
}

/// The longest account of a client that is believed to be a name.
const MAX_SAID: usize = 64;

/// Who runs this process, as the kernel knows it, and beside it who they say that they are.
pub fn doer(says: Option<&str>) -> String {
    let own = Process::myself().ok();
    // `None`: nobody has logged in, as where a service runs.
    let login = own.and_then(|own| own.loginuid().ok());
    let login = login.filter(|login| *login != u32::MAX);
    describe(Uid::effective(), login.map(Uid::from_raw), says)
}

fn describe(runs_as: Uid, login: Option<Uid>, says: Option<&str>) -> String {
    let mut text = name_of(runs_as);
    if let Some(login) = login.filter(|login| *login != runs_as) {
        text = format!("{} as {text}", name_of(login));
    }
    let names = [Some(runs_as), login].map(|user| user.map(name_of));
    match says.filter(|says| !names.contains(&Some((*says).to_owned()))) {
        Some(says) => {
            let said: String = says.chars().take(MAX_SAID).collect();
            format!("{text} (says {said:?})")
        }
        None => text,
    }
}

fn name_of(user: Uid) -> String {
    let known = User::from_uid(user).ok().flatten();
    known.map_or_else(|| format!("user {user}"), |known| known.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_it_is_what_the_kernel_says_and_what_they_say_stands_beside_it() {
        let [root, unknown] = [0, 4_000_000_000].map(Uid::from_raw);
        assert_eq!(describe(root, None, None), "root");
        assert_eq!(describe(root, Some(root), Some("root")), "root");
        assert_eq!(
            describe(root, Some(unknown), None),
            "user 4000000000 as root"
        );
        let said = describe(root, None, Some("ana\nmode off\u{202e}"));
        assert_eq!(said, "root (says \"ana\\nmode off\\u{202e}\")");
        assert!(describe(root, None, Some(&"x".repeat(9_999))).len() < 100);
    }

    #[test]
    fn a_session_reads_as_sshd_writes_it() {
        let cases = [
            (
                "198.51.100.7 50000 203.0.113.10 22",
                "198.51.100.7:50000",
                "203.0.113.10:22",
            ),
            (
                "2001:db8:51::7 50000 2001:db8:113::10 2222",
                "[2001:db8:51::7]:50000",
                "[2001:db8:113::10]:2222",
            ),
            (
                "fe80::1%eth0 50000 fe80::2%eth0 22",
                "[fe80::1]:50000",
                "[fe80::2]:22",
            ),
            (
                "::ffff:198.51.100.7 50000 ::ffff:203.0.113.10 22",
                "198.51.100.7:50000",
                "203.0.113.10:22",
            ),
        ];
        for (text, client, server) in cases {
            let session = SshSession {
                client: client.parse().unwrap(),
                server: server.parse().unwrap(),
            };
            assert_eq!(text.parse(), Ok(session), "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_session() {
        for text in [
            "",
            " ",
            "198.51.100.7",
            "198.51.100.7 50000",
            "198.51.100.7 50000 203.0.113.10",
            "198.51.100.7 50000 203.0.113.10 22 more",
            "198.51.100.7 0 203.0.113.10 22",
            "198.51.100.7 50000 203.0.113.10 0",
            "198.51.100.7 50000 203.0.113.10 99999",
            "198.51.100.7 -1 203.0.113.10 22",
            "UNKNOWN 65535 UNKNOWN 65535",
            "%eth0 50000 203.0.113.10 22",
            "\u{1b}[2J 1 \u{0} 2",
        ] {
            assert_eq!(text.parse::<SshSession>(), Err(NoSession), "{text:?}");
        }
        assert_eq!(parse(OsStr::new("nonsense")), None);
    }
}
