//! The operator's own way in: the SSH session from which a command was started.

use std::{
    env,
    ffi::{OsStr, OsString},
    iter,
};

pub use guard_api::operator::SshSession;
use nix::unistd::{Uid, User};
use procfs::process::Process;

/// The variable that sshd sets: the client's address and port, and the server's address and port (ssh(1)).
const VARIABLE: &str = "SSH_CONNECTION";

/// The limit of ancestors that are searched: no one nests shells deeper.
const MAX_ANCESTORS: usize = 256;

/// The SSH session from which this process was started, if any. sudo and su remove the variable, so the ancestors are
/// searched as well, the nearest first.
pub fn ssh_session() -> Option<SshSession> {
    let own = env::var_os(VARIABLE);
    let environments = iter::once(own).chain(ancestors().map(|process| variable_of(&process)));
    environments.flatten().find_map(|value| parse(&value))
}

fn parse(value: &OsStr) -> Option<SshSession> {
    value.to_str()?.parse().ok()
}

/// The variable of a process. `None`: it is not set, or this process may not read the environment.
fn variable_of(process: &Process) -> Option<OsString> {
    process.environ().ok()?.remove(OsStr::new(VARIABLE))
}

fn ancestors() -> impl Iterator<Item = Process> {
    let parent = |process: &Process| Process::new(process.stat().ok()?.ppid).ok();
    let own = Process::myself().ok();
    let first = own.as_ref().and_then(parent);
    iter::successors(first, parent).take(MAX_ANCESTORS)
}

/// The user of this process, as reported by the kernel: the effective user, and the login user if that is another.
pub fn acting_user() -> String {
    let own = Process::myself().ok();
    // `None`: there is no login, as for a service.
    let login = own.and_then(|own| own.loginuid().ok());
    let login = login.filter(|login| *login != u32::MAX);
    describe(Uid::effective(), login.map(Uid::from_raw))
}

fn describe(runs_as: Uid, login: Option<Uid>) -> String {
    match login.filter(|login| *login != runs_as) {
        Some(login) => format!("{} as {}", name_of(login), name_of(runs_as)),
        None => name_of(runs_as),
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
    fn the_doer_is_the_effective_user_with_the_login_user() {
        let [root, unknown] = [0, 4_000_000_000].map(Uid::from_raw);
        assert_eq!(describe(root, None), "root");
        assert_eq!(describe(root, Some(root)), "root");
        assert_eq!(describe(root, Some(unknown)), "user 4000000000 as root");
    }

    #[test]
    fn a_variable_with_nonsense_is_no_session() {
        assert_eq!(parse(OsStr::new("nonsense")), None);
        let session = parse(OsStr::new("198.51.100.7 50000 203.0.113.10 22")).unwrap();
        assert_eq!(session.client, "198.51.100.7:50000".parse().unwrap());
    }
}
