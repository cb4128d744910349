//! The operator's own way in, as requests carry it: an SSH session.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An SSH session to this host. IPv4 addresses are never IPv4-mapped IPv6, and addresses have no zone.
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

/// The error for a text that is not an SSH session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an SSH session: write the client's address and port and the server's, as in SSH_CONNECTION"
)]
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

/// Parses an address with or without a zone: `fe80::1%eth0`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let address = text.split_once('%').map_or(text, |(address, _)| address);
    Some(address.parse::<IpAddr>().ok()?.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_text_that_is_not_a_session_is_refused() {
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
    }
}
