//! Removes the processes, namespaces, mounts and files of a lab whose owner was killed. It finds them by the lab's
//! name, so nothing else on the machine is touched.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    process::{retry, run},
    topology::NAME,
};

/// The mount point of the cgroup controllers, in version 1 and version 2.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The folder of the lab with this name.
pub fn folder(lab: &str) -> PathBuf {
    env::temp_dir().join(lab)
}

/// Removes the labs whose owner no longer runs.
///
/// Only one thread runs it at a time: a second thread would find the files that the first is removing.
pub fn dead_labs() -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    labs_of(|owner| !Path::new("/proc").join(owner).exists())
}

fn labs_of(chosen: impl Fn(&str) -> bool) -> Result<()> {
    let is_chosen = |name: &str| owner(name).is_some_and(&chosen);
    let names = |folder: &Path| -> Result<Vec<String>> {
        let mut names = names_in(folder)?;
        names.retain(|name| is_chosen(name));
        Ok(names)
    };
    let namespaces = names(Path::new("/run/netns"))?;
    // On SIGTERM Docker stops its containers; SIGKILL ends only the processes that still run afterwards.
    for (signal, patience) in [(Signal::SIGTERM, 10_000), (Signal::SIGKILL, 2_000)] {
        for namespace in &namespaces {
            end_processes(namespace, signal, Duration::from_millis(patience))?;
        }
    }
    let mut labs = names(&env::temp_dir())?;
    for root in cgroup_roots()? {
        labs.extend(names(&root)?);
    }
    labs.sort_unstable();
    labs.dedup();
    // A lab that cannot be removed does not keep a new lab from being made.
    for namespace in &namespaces {
        warn(run(Command::new("ip").args(["netns", "del", namespace])));
    }
    for lab in labs {
        warn(remove_cgroups(&lab));
        let folder = folder(&lab);
        if folder.is_dir() {
            warn(remove_folder(&folder));
        }
    }
    Ok(())
}

/// The process id in a lab's name; `None` for any other name.
fn owner(name: &str) -> Option<&str> {
    let owner = name
        .strip_prefix(NAME)?
        .strip_prefix('-')?
        .split('-')
        .next()?;
    owner.parse::<u32>().is_ok().then_some(owner)
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(folder.display().to_string()),
    }
}

fn warn<T>(result: Result<T>) {
    if let Err(error) = result {
        eprintln!("the rest of a dead lab cannot be removed: {error:#}");
    }
}

/// Signals every process in a namespace and waits until they have ended.
fn end_processes(namespace: &str, signal: Signal, patience: Duration) -> Result<()> {
    let processes = || -> Result<Vec<i32>> {
        let list = run(Command::new("ip").args(["netns", "pids", namespace]))?;
        Ok(list
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect())
    };
    for process in processes()? {
        // The process may have ended meanwhile.
        let _result = kill(Pid::from_raw(process), signal);
    }
    let step = Duration::from_millis(50);
    let mut waited = Duration::ZERO;
    while waited < patience && !processes()?.is_empty() {
        thread::sleep(step);
        waited += step;
    }
    Ok(())
}

/// Unmounts what is mounted below a folder, and removes it.
pub fn remove_folder(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let inside = mounts
        .lines()
        .filter_map(|mount| mount.split_whitespace().nth(1))
        .filter(|place| Path::new(place).starts_with(folder));
    // Unmounts in reverse order: a mount may lie inside an earlier one.
    let mut inside: Vec<&str> = inside.collect();
    inside.reverse();
    for place in inside {
        run(Command::new("umount").args(["--lazy", place]))?;
    }
    fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
}

/// Removes the cgroups that Docker made with the lab's name. First it kills the processes in them, which a killed
/// Docker left.
pub fn remove_cgroups(lab: &str) -> Result<()> {
    for place in cgroup_roots()? {
        let place = place.join(lab);
        if place.is_dir() {
            kill_members(&place)?;
            retry(Duration::from_secs(5), || {
                remove_cgroup(&place).with_context(|| place.display().to_string())
            })?;
        }
    }
    Ok(())
}

fn kill_members(place: &Path) -> Result<()> {
    let members = fs::read_to_string(place.join("cgroup.procs"))?;
    for member in members.lines().filter_map(|line| line.parse().ok()) {
        // The process may have ended meanwhile.
        let _result = kill(Pid::from_raw(member), Signal::SIGKILL);
    }
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            kill_members(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_cgroup(place: &Path) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(place)
}

/// The root of the version 2 hierarchy, and of each version 1 controller.
fn cgroup_roots() -> Result<Vec<PathBuf>> {
    let root = PathBuf::from(CGROUPS);
    let mut roots = Vec::new();
    if root.is_dir() {
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.path().join("cgroup.procs").exists() {
                roots.push(entry.path());
            }
        }
        roots.push(root);
    }
    Ok(roots)
}
