//! `guard init`: writes a first policy for the services found on this host.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::{
    AgentLocation, DEFAULT_POLICY, Failure, files, print, print_warning, reading::GuardReader,
};
use crate::{
    audit::host::{Survey, find_docker},
    host::Firewalls,
    init::{self, Findings, FirstInterfaces, FirstPolicy, SCOPES},
    operator::ssh_session,
};

/// The policy that the package installs. Nobody has written it, so it may be replaced.
const PACKAGED: &str = include_str!("../../../packaging/guard.toml");

/// The end of the name under which the package's policy is kept, and that of a policy that `--force` replaces.
const KEPT_PACKAGED: &str = "packaged";
const KEPT_OLD: &str = "old";

/// The most copies of replaced policies beside a policy.
const MOST_KEPT: u32 = 100;

/// Where systemd finds the unit of the package, or of another installation.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/guard.service",
    "/usr/lib/systemd/system/guard.service",
    "/lib/systemd/system/guard.service",
];
const SYSTEMD_RUNS: &str = "/run/systemd/system";

#[derive(Debug, Args)]
pub struct Init {
    /// The policy file to write. It replaces the package's policy, which is kept, but no file that was changed
    #[arg(long, short = 'o', visible_alias = "output", value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
    /// Print the policy, and write nothing
    #[arg(long)]
    print: bool,
    /// Replace a policy that was changed, and keep it as FILE.old
    #[arg(long)]
    force: bool,
    /// The socket of Docker or Podman; "" for none
    #[arg(long, value_name = "SOCKET")]
    docker: Option<String>,
}

/// The mode that drops packets.
const ENFORCE: &str = "enforce";

/// What is at the place of the new policy.
enum Replaced {
    Nothing,
    /// The package's policy, unchanged.
    Packaged,
    /// A policy that an operator has written.
    Changed,
}

impl Init {
    pub(super) async fn run(self, location: &AgentLocation) -> Result<(), Failure> {
        let Self {
            policy,
            print: only_print,
            force,
            docker,
        } = self;
        // The survey takes a while: a file that stays is reported before it.
        let replaced = match only_print {
            true => Replaced::Nothing,
            false => Replaced::at(&policy)?,
        };
        if matches!(replaced, Replaced::Changed) && !force {
            return Err(taken(&policy).into());
        }
        let docker = docker
            .or_else(find_docker)
            .filter(|socket| !socket.is_empty());
        let survey = Survey::make(docker).await?;
        let firewalls = Firewalls::read();
        let findings = Findings {
            survey: &survey,
            session: ssh_session(),
            firewalls: &firewalls,
        };
        let first = init::write(&findings).map_err(anyhow::Error::from)?;
        for note in survey.docker.error.iter().chain(&survey.notes) {
            print_warning(note);
        }
        if only_print {
            return Ok(print(&first.text)?);
        }
        let kept = match write(&policy, &first.text, &replaced) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(taken(&policy).into());
            }
            kept => kept.with_context(|| format!("{} cannot be written", policy.display()))?,
        };
        let has_agent = location.client().is_ok_and(|client| client.has_agent());
        let status = GuardReader::new(location)?.status().await.ok();
        let next = NextSteps {
            starts: Starts::new(&policy, has_agent),
            ends_enforcing: status.is_some_and(|status| status.mode == ENFORCE),
        };
        Ok(print(&describe(&policy, &first, kept.as_deref(), next))?)
    }
}

impl Replaced {
    fn at(policy: &Path) -> anyhow::Result<Self> {
        match fs::read(policy) {
            Ok(text) if text == PACKAGED.as_bytes() => Ok(Self::Packaged),
            Ok(_) => Ok(Self::Changed),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::Nothing),
            Err(error) => Err(anyhow!(
                "{} cannot be read: {error}: -o FILE writes the policy to another file",
                policy.display()
            )),
        }
    }
}

fn taken(policy: &Path) -> anyhow::Error {
    let file = policy.display();
    anyhow!(
        "{file} is there already and was not changed: --print shows the new policy, -o FILE writes it to another file, \
         and --force replaces {file} and keeps a copy"
    )
}

/// Writes the policy. Returns where the replaced file is kept.
fn write(path: &Path, text: &str, replaced: &Replaced) -> io::Result<Option<PathBuf>> {
    if let Replaced::Nothing = replaced {
        write_new(path, text)?;
        return Ok(None);
    }
    // A symbolic link stays: the file that it names is replaced.
    let path = fs::canonicalize(path)?;
    let kept = match replaced {
        Replaced::Changed => keep_old(&path)?,
        Replaced::Nothing | Replaced::Packaged => {
            let kept = beside(&path, KEPT_PACKAGED);
            fs::copy(&path, &kept)?;
            kept
        }
    };
    files::replace(&path, text)?;
    Ok(Some(kept))
}

/// Copies a policy to the first name beside it that no file has.
fn keep_old(path: &Path) -> io::Result<PathBuf> {
    let text = fs::read(path)?;
    let names = (1..MOST_KEPT).map(|n| match n {
        1 => KEPT_OLD.to_owned(),
        n => format!("{KEPT_OLD}.{n}"),
    });
    for name in names {
        let kept = beside(path, &name);
        match File::create_new(&kept) {
            Ok(mut file) => {
                file.set_permissions(fs::metadata(path)?.permissions())?;
                file.write_all(&text)?;
                file.sync_all()?;
                return Ok(kept);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!(
        "there are {MOST_KEPT} copies of replaced policies beside it: remove some"
    )))
}

/// `guard.toml.old`
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// How the policy is put in force on this host.
#[derive(Clone, Copy)]
enum Starts {
    /// An agent runs; whether with this file, only its operator knows.
    Reload,
    /// The unit of the package, which reads the default file.
    Unit,
    /// There is no unit, or the file is another.
    Foreground,
}

impl Starts {
    fn new(policy: &Path, has_agent: bool) -> Self {
        let has_unit =
            Path::new(SYSTEMD_RUNS).exists() && UNITS.iter().any(|unit| Path::new(unit).exists());
        let is_default = policy == Path::new(DEFAULT_POLICY);
        match (has_agent, has_unit, is_default) {
            (true, _, _) => Self::Reload,
            (false, true, true) => Self::Unit,
            (false, ..) => Self::Foreground,
        }
    }
}

/// The facts that decide what to type next.
#[derive(Clone, Copy)]
struct NextSteps {
    starts: Starts,
    /// The guard enforces a policy now, and the written one only observes.
    ends_enforcing: bool,
}

/// What was written and why, and the commands to type next.
fn describe(policy: &Path, first: &FirstPolicy, kept: Option<&Path>, next: NextSteps) -> String {
    let NextSteps {
        starts,
        ends_enforcing,
    } = next;
    let FirstPolicy {
        text: _,
        advice,
        interfaces,
        listed,
        closed,
    } = first;
    let file = policy.display();
    let scope = advice.scope.name();
    let observes = match ends_enforcing {
        true => "it only counts",
        false => "nothing is dropped yet",
    };
    let mut lines = vec![format!(
        "wrote {file}: mode observe ({observes}), scope {scope}"
    )];
    if ends_enforcing {
        lines.push(
            "THE GUARD ENFORCES NOW: a reload or a restart with this policy would end that. Write `mode = \"enforce\"` \
             to keep it"
                .to_owned(),
        );
    }
    lines.extend(kept.map(|kept| format!("the file that was there is now {}", kept.display())));
    match interfaces {
        FirstInterfaces::Routed => {}
        FirstInterfaces::Named(names) => lines.push(format!(
            "this host has no default route, so `interfaces` names those with an address: {}",
            names.join(", ")
        )),
        FirstInterfaces::Missing => lines.push(
            "NO INTERFACE WAS FOUND: `guard run` refuses the policy until you name one in `interfaces`"
                .to_owned(),
        ),
    }
    lines.push(String::new());
    lines.extend(SCOPES.map(|scope| format!("  {scope}")));
    lines.push(format!("  here \"{scope}\" fits: {}", advice.why));
    lines.push(String::new());
    lines.push(format!("  open in this policy: {}", listed.join(", ")));
    if !closed.is_empty() {
        lines.push(format!(
            "  open now, closed by it once enforced: {}",
            closed.join(", ")
        ));
    }
    lines.push(String::new());
    lines.push("next, read the file, and type:".to_owned());
    let is_default = policy == Path::new(DEFAULT_POLICY);
    let name = match is_default {
        true => String::new(),
        false => format!(" {file}"),
    };
    let option = match is_default {
        true => String::new(),
        false => format!(" --policy {file}"),
    };
    let mut commands = vec![(
        format!("guard check --live{name}"),
        "what it means, and whether it would cut an open session",
    )];
    if ends_enforcing {
        commands.push((format!("guard diff{name}"), "what it would change"));
    }
    let starts_agent = match ends_enforcing {
        true => "starts the agent, and ends enforcing",
        false => "starts the agent; in mode observe it only counts",
    };
    commands.push(match (starts, is_default) {
        (Starts::Reload, true) => (
            "guard reload".to_owned(),
            match ends_enforcing {
                true => "puts it in force, and ends enforcing unless you changed the mode",
                false => "puts it in force; in mode observe it only counts",
            },
        ),
        (Starts::Reload, false) => (
            format!("guard try {file} --for 10m"),
            "puts it in force for ten minutes; `guard confirm` keeps it",
        ),
        (Starts::Unit, _) => ("systemctl enable --now guard".to_owned(), starts_agent),
        (Starts::Foreground, _) => (format!("guard run{option}"), starts_agent),
    });
    commands.push((
        "guard status".to_owned(),
        "whether it is attached, and where",
    ));
    commands.push((
        "guard counters".to_owned(),
        "later: what it would have dropped",
    ));
    let width = commands.iter().map(|(typed, _)| typed.chars().count());
    let width = width.max().unwrap_or_default();
    let commands = commands.iter();
    lines.extend(commands.map(|(typed, does)| format!("  {typed:<width$}  # {does}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use guard_common::exposure::Scope;

    use super::*;
    use crate::init::ScopeAdvice;

    fn first() -> FirstPolicy {
        FirstPolicy {
            text: String::new(),
            advice: ScopeAdvice {
                scope: Scope::Containers,
                why: "ufw filters the host's own ports already".to_owned(),
            },
            interfaces: FirstInterfaces::Routed,
            listed: vec!["ssh (tcp/22)".to_owned(), "proxy (tcp/80)".to_owned()],
            closed: vec!["invoices (tcp/8000)".to_owned()],
        }
    }

    const fn observing(starts: Starts) -> NextSteps {
        NextSteps {
            starts,
            ends_enforcing: false,
        }
    }

    #[test]
    fn a_policy_that_would_end_enforcing_says_so_before_anything_else() {
        let policy = FirstPolicy {
            interfaces: FirstInterfaces::Named(vec!["wan".to_owned()]),
            ..first()
        };
        let next = NextSteps {
            starts: Starts::Reload,
            ends_enforcing: true,
        };
        let text = describe(Path::new(DEFAULT_POLICY), &policy, None, next);
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("  scope") && !line.is_empty());
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r#"
        wrote /etc/guard/guard.toml: mode observe (it only counts), scope containers
        THE GUARD ENFORCES NOW: a reload or a restart with this policy would end that. Write `mode = "enforce"` to keep it
        this host has no default route, so `interfaces` names those with an address: wan
          here "containers" fits: ufw filters the host's own ports already
          open in this policy: ssh (tcp/22), proxy (tcp/80)
          open now, closed by it once enforced: invoices (tcp/8000)
        next, read the file, and type:
          guard check --live  # what it means, and whether it would cut an open session
          guard diff          # what it would change
          guard reload        # puts it in force, and ends enforcing unless you changed the mode
          guard status        # whether it is attached, and where
          guard counters      # later: what it would have dropped
        "#);
    }

    #[test]
    fn what_to_type_next_fits_the_host() {
        let default = Path::new(DEFAULT_POLICY);
        let kept = beside(default, KEPT_PACKAGED);
        let text = describe(default, &first(), Some(&kept), observing(Starts::Unit));
        insta::assert_snapshot!(text, @r#"
        wrote /etc/guard/guard.toml: mode observe (nothing is dropped yet), scope containers
        the file that was there is now /etc/guard/guard.toml.packaged

          scope "containers" closes the ports that containers publish, and leaves the host's own ports to your firewall
          scope "host" closes every port that no service lists, of containers and of the host's own programs
          here "containers" fits: ufw filters the host's own ports already

          open in this policy: ssh (tcp/22), proxy (tcp/80)
          open now, closed by it once enforced: invoices (tcp/8000)

        next, read the file, and type:
          guard check --live            # what it means, and whether it would cut an open session
          systemctl enable --now guard  # starts the agent; in mode observe it only counts
          guard status                  # whether it is attached, and where
          guard counters                # later: what it would have dropped
        "#);
        let other = Path::new("/tmp/first.toml");
        let next = |starts| {
            let text = describe(other, &first(), None, observing(starts));
            let lines = text.lines().filter(|line| line.contains("first.toml"));
            lines.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(next(Starts::Foreground), @r#"
        wrote /tmp/first.toml: mode observe (nothing is dropped yet), scope containers
          guard check --live /tmp/first.toml  # what it means, and whether it would cut an open session
          guard run --policy /tmp/first.toml  # starts the agent; in mode observe it only counts
        "#);
        insta::assert_snapshot!(next(Starts::Reload), @r#"
        wrote /tmp/first.toml: mode observe (nothing is dropped yet), scope containers
          guard check --live /tmp/first.toml   # what it means, and whether it would cut an open session
          guard try /tmp/first.toml --for 10m  # puts it in force for ten minutes; `guard confirm` keeps it
        "#);
    }

    #[test]
    fn the_packages_policy_is_replaced_and_kept_and_a_changed_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        assert!(matches!(Replaced::at(&path).unwrap(), Replaced::Nothing));
        fs::write(&path, PACKAGED).unwrap();
        let replaced = Replaced::at(&path).unwrap();
        assert!(matches!(replaced, Replaced::Packaged));
        let kept = write(&path, "new", &replaced).unwrap().unwrap();
        assert!(kept.ends_with("guard.toml.packaged"), "{kept:?}");
        assert_eq!(fs::read_to_string(kept).unwrap(), PACKAGED);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        fs::write(&path, format!("{PACKAGED}\n# mine\n")).unwrap();
        assert!(matches!(Replaced::at(&path).unwrap(), Replaced::Changed));
        // Each replaced policy is kept under a name of its own.
        for (text, name) in [("mine", "guard.toml.old"), ("mine too", "guard.toml.old.2")] {
            fs::write(&path, text).unwrap();
            let kept = write(&path, "new", &Replaced::Changed).unwrap().unwrap();
            assert!(kept.ends_with(name), "{kept:?}");
            assert_eq!(fs::read_to_string(kept).unwrap(), text);
        }
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.toml");
        fs::write(&path, "mine").unwrap();
        let error = write(&path, "new", &Replaced::Nothing).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
