//! The Debian package, in a fresh Debian: its files, that an installation enforces nothing, that the service works in
//! its sandbox, and that a removal leaves no files or programs.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use lab::{
    debian::Debian,
    guard::binary,
    machine::Machine,
    process::{run, wait_for},
    topology::Lab,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The path of the Debian package, built once.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| make_package("package"))
}

fn make_package(folder: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let output = run(Command::new(env!("CARGO"))
        .args(["xtask", "package", "--fast", "--binary"])
        .arg(binary().unwrap())
        .arg("--into")
        .arg(folder)
        // The test harness sets these variables; with them, build scripts that read them would be compiled again.
        .env_remove("RUSTC_BOOTSTRAP")
        .current_dir(env!("CARGO_MANIFEST_DIR")))
    .unwrap();
    output.lines().last().unwrap().into()
}

/// Copies the package into this Debian, for dpkg there.
fn bring_package(debian: &Debian) {
    fs::copy(package(), debian.root().join("root/guard.deb")).unwrap();
}

#[test]
fn the_same_binary_gives_the_same_package() {
    let again = make_package("package-again");
    assert_eq!(fs::read(package()).unwrap(), fs::read(&again).unwrap());
    fs::remove_dir_all(again.parent().unwrap()).unwrap();
}

#[test]
fn a_fresh_debian_takes_the_package_and_after_a_purge_no_file_is_left() {
    let lab = Lab::new().unwrap();
    let debian = Debian::new(&lab).unwrap();
    bring_package(&debian);
    let before = debian.files().unwrap();
    debian.run("dpkg --install /root/guard.deb").unwrap();
    let files = debian.files().unwrap();
    for file in [
        "etc/guard/guard.toml",
        "usr/bin/guard",
        "usr/bin/guard-compose",
        "usr/lib/systemd/system/guard.service",
        "usr/share/bash-completion/completions/guard",
        "usr/share/fish/vendor_completions.d/guard.fish",
        "usr/share/zsh/vendor-completions/_guard",
    ] {
        assert!(files.iter().any(|name| name == file), "{file} is missing");
    }
    assert_manual_is_whole(&debian);
    assert_documents(&debian);
    debian
        .run("bash -n /usr/share/bash-completion/completions/guard")
        .unwrap();
    debian.run("getent group guard").unwrap();

    // The command works, and the installed policy is in mode observe.
    let version = debian.run("guard --version").unwrap();
    assert_eq!(version.trim(), concat!("guard ", env!("CARGO_PKG_VERSION")));
    let checked = debian.run("guard check").unwrap();
    assert!(checked.contains("mode observe"), "{checked}");

    // The service is not enabled, neither by the installation nor at the first boot of an image.
    assert_disabled(&debian);
    debian.run("systemctl preset-all").unwrap();
    assert_disabled(&debian);

    let verified = debian
        .command("systemd-analyze")
        .args(["verify", "--man=no", "guard.service"])
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&verified.stderr);
    assert!(
        verified.status.success() && !complaints.contains("guard"),
        "{complaints}"
    );
    // At most 3.0 of 10, where 10 is a service without a sandbox.
    debian
        .run("systemd-analyze security --offline=true --threshold=30 guard.service")
        .unwrap();

    // An operator's policy survives an upgrade and a removal, but not a purge.
    let policy = debian.root().join("etc/guard/guard.toml");
    let changed = format!("{}# mine\n", fs::read_to_string(&policy).unwrap());
    fs::write(&policy, &changed).unwrap();
    fs::create_dir(debian.root().join("var/lib/guard")).unwrap();
    debian.run("dpkg --install /root/guard.deb").unwrap();
    assert_eq!(fs::read_to_string(&policy).unwrap(), changed);
    debian.run("dpkg --remove guard").unwrap();
    assert_eq!(fs::read_to_string(&policy).unwrap(), changed);
    assert!(!debian.root().join("usr/bin/guard").exists());
    debian.run("dpkg --purge guard").unwrap();
    let before: BTreeSet<String> = before.into_iter().collect();
    let left = debian.files().unwrap();
    let left: Vec<&String> = left
        .iter()
        .filter(|name| !before.contains(*name) && !is_debians_record(name))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Whether a file is a record that Debian's own programs keep of every package.
fn is_debians_record(name: &str) -> bool {
    const RECORDS: [&str; 7] = [
        // The lock file of /etc/group.
        "etc/.pwd.lock",
        // Links that `systemctl preset-all` creates.
        "etc/systemd/system/",
        "etc/systemd/user/",
        "run/systemd",
        "var/lib/dpkg/",
        "var/lib/systemd/deb-systemd-helper-",
        "var/log/dpkg.log",
    ];
    RECORDS.iter().any(|record| name.starts_with(record)) && !name.contains("guard")
}

#[track_caller]
fn assert_disabled(debian: &Debian) {
    let state = debian
        .command("systemctl")
        .args(["is-enabled", "guard.service"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(state.stdout).unwrap().trim(), "disabled");
}

/// Asserts that every command has a manual page, and that the policy's page has every key.
fn assert_manual_is_whole(debian: &Debian) {
    let page = |name: &str| {
        run(Command::new("gzip")
            .args(["--decompress", "--stdout"])
            .arg(debian.root().join("usr/share/man").join(name)))
        .unwrap()
    };
    let help = debian.run("guard --help").unwrap();
    // The commands stand in groups, each with its summary.
    let commands = help.lines().take_while(|line| *line != "Options:");
    let commands: Vec<&str> = commands
        .filter(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() > 20, "{help}");
    let overview = page("man1/guard.1.gz");
    for command in commands {
        assert!(overview.contains(&format!("guard\\-{command}(1)")));
        assert!(page(&format!("man1/guard-{command}.1.gz")).contains("EXIT STATUS"));
    }
    let policy = page("man5/guard.toml.5.gz");
    for key in ["mode", "service.limit.per", "source.expires"] {
        assert!(policy.contains(&format!(".TP\n\\fB{key}\\fR")), "{key}");
    }
}

/// Asserts that the package has the licences of all code in the binary.
fn assert_documents(debian: &Debian) {
    let documents = debian.root().join("usr/share/doc/guard");
    let licences = run(Command::new("gzip")
        .args(["--decompress", "--stdout"])
        .arg(documents.join("THIRD-PARTY.gz")))
    .unwrap();
    // A crate of the command, a crate of the kernel program, and no crate that is only used in the build.
    assert!(licences.contains("\ntokio 1.") && licences.contains("\naya-ebpf 0."));
    assert!(!licences.contains("\naya-build ") && !licences.contains("\nsyn "));
    for document in [
        "copyright",
        "changelog.gz",
        "README.md",
        "docs/operations.md",
        "docs/es/limits.md",
        "examples/traefik.toml",
    ] {
        assert!(documents.join(document).exists(), "{document}");
    }
}

const POLICY: &str = "
mode = \"enforce\"
scope = \"host\"
interfaces = [\"wan\"]
docker.socket = \"\"
[[service]]
name = \"web\"
ports = [\"tcp/80\"]
";

#[test]
fn the_service_works_in_its_sandbox_and_a_removal_leaves_nothing_in_the_kernel() {
    let lab = Lab::new().unwrap();
    let debian = Debian::new(&lab).unwrap();
    let machine = Machine::boot(&lab, &debian).unwrap();
    bring_package(&debian);
    machine.run("dpkg --install /root/guard.deb").unwrap();
    assert_eq!(is_active(&machine), "inactive");
    assert_eq!(attached(&lab), Vec::<String>::new());

    machine.write("/etc/guard/guard.toml", POLICY).unwrap();
    machine.run("systemctl enable --now guard").unwrap();
    // systemd has waited for the agent's readiness message (Type=notify).
    let before = attached(&lab);
    assert!(!before.is_empty());
    assert!(!machine.pins().unwrap().is_empty());
    assert_sandboxed(&machine);
    machine.run("systemctl reload guard").unwrap();
    assert!(
        machine
            .run("guard status --verbose")
            .unwrap()
            .contains("generation 2")
    );
    assert_socket_is_for_its_group(&machine);

    // An upgrade replaces the running agent.
    let old = main_process(&machine);
    machine.run("dpkg --install /root/guard.deb").unwrap();
    wait_for(PATIENCE, || {
        let status = machine.run("guard status")?;
        anyhow::ensure!(!status.contains("NOT RUNNING"), "{status}");
        Ok(())
    })
    .unwrap();
    assert_ne!(main_process(&machine), old);
    assert_eq!(is_active(&machine), "active");
    machine.run("systemctl stop guard").unwrap();
    let status = machine.run("guard status").unwrap();
    assert!(
        status.contains("NOT RUNNING") && status.contains("enforcing"),
        "the kernel still enforces: {status}"
    );
    assert!(!attached(&lab).is_empty());

    machine.run("dpkg --remove guard").unwrap();
    assert_eq!(is_active(&machine), "inactive");
    assert_eq!(attached(&lab), Vec::<String>::new());
    assert_eq!(machine.pins().unwrap(), Vec::<PathBuf>::new());
    machine.run("dpkg --purge guard").unwrap();
    let left = machine.run("find /etc /run /var -name *guard* -not -path /var/lib/dpkg/*");
    assert_eq!(left.unwrap(), "");
}

/// The programs on the host's interfaces.
fn attached(lab: &Lab) -> Vec<String> {
    let net = run(lab.host.command("bpftool").args(["net", "show"])).unwrap();
    let programs = net.lines().filter(|line| line.contains(" id "));
    programs.map(str::to_owned).collect()
}

fn is_active(machine: &Machine) -> String {
    let state = machine.command("systemctl").unwrap();
    let state = { state }.args(["is-active", "guard"]).output().unwrap();
    String::from_utf8(state.stdout).unwrap().trim().to_owned()
}

fn main_process(machine: &Machine) -> String {
    let process = machine.run("systemctl show --property=MainPID --value guard");
    process.unwrap().trim().to_owned()
}

/// Asserts that the agent has three capabilities, and may write only to its state folder.
fn assert_sandboxed(machine: &Machine) {
    let process = main_process(machine);
    let status = machine.run(&format!("cat /proc/{process}/status")).unwrap();
    // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
    let capabilities = format!("{:016x}", (1_u64 << 12) | (1 << 38) | (1 << 39));
    for fact in [
        format!("CapEff:\t{capabilities}"),
        format!("CapBnd:\t{capabilities}"),
        "NoNewPrivs:\t1".to_owned(),
        "Seccomp:\t2".to_owned(),
    ] {
        assert!(status.contains(&fact), "{fact} is not in {status}");
    }
    let may_write = |place: &str| {
        let test = format!("nsenter --mount --target={process} test -w {place}");
        machine.run(&test).is_ok()
    };
    for place in ["/sys/fs/bpf", "/run/guard", "/var/lib/guard"] {
        assert!(may_write(place), "{place} is read-only");
    }
    for place in ["/etc", "/usr", "/var", "/proc/sys/kernel", "/sys/kernel"] {
        assert!(!may_write(place), "{place} is not read-only");
    }
}

fn assert_socket_is_for_its_group(machine: &Machine) {
    let ask_as = |user: &str| {
        let status = machine.command("runuser").unwrap();
        let status = { status }.args(["-u", user, "guard", "status"]).output();
        status.unwrap()
    };
    machine.run("useradd --groups guard ana").unwrap();
    machine.run("useradd ben").unwrap();
    assert!(ask_as("ana").status.success());
    let refused = ask_as("ben");
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && error.contains("join group guard (`sudo adduser YOU guard`"),
        "{error}"
    );
}
