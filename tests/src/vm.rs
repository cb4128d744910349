//! Runs a command in a virtual machine with one of Debian's kernels, in software emulation. Its files are copies of
//! this machine's, in memory, and it has no network.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use which::which;

use crate::{
    cache,
    process::{Daemon, run},
};

/// A kernel that `cargo xtask setup` has unpacked.
pub struct Kernel {
    /// The release, as `uname -r` prints it.
    pub release: String,
    root: PathBuf,
}

impl Kernel {
    /// The folder of the unpacked kernels. For each series, a file in it names the folder of the kernel.
    pub fn cache() -> PathBuf {
        cache::folder().join("kernels")
    }

    /// The unpacked kernel of a series, such as `6.1`.
    pub fn of_series(series: &str) -> Result<Self> {
        let kept = || {
            let folder = fs::read_to_string(Self::cache().join(series))?;
            let root = Self::cache().join(folder);
            let kernel = Self {
                release: only_entry(&root.join(MODULES))?,
                root,
            };
            for file in [kernel.image(), kernel.modules().join(DEPENDENCIES)] {
                ensure!(file.is_file(), "{} is missing", file.display());
            }
            Ok(kernel)
        };
        kept().with_context(|| format!("kernel {series} is not unpacked: run `cargo xtask setup`"))
    }

    fn image(&self) -> PathBuf {
        self.root.join(IMAGE)
    }

    fn modules(&self) -> PathBuf {
        self.root.join(MODULES).join(&self.release)
    }

    /// The files of a module and of its dependencies, in load order.
    fn files_of(&self, module: &str) -> Result<Vec<PathBuf>> {
        // `kernel/net/sched/cls_bpf.ko.xz: kernel/…`: the last dependency on the line is loaded first.
        let dependencies = fs::read_to_string(self.modules().join(DEPENDENCIES))?;
        let line = dependencies.lines().find(|line| {
            let file = line.split([':', '/']).find(|part| part.contains(".ko"));
            file.is_some_and(|file| name_of(file) == module)
        });
        let line = line.with_context(|| format!("{} has no module {module}", self.release))?;
        let files = line.split([':', ' ']).rev();
        let files = files.filter(|file| !file.is_empty());
        Ok(files.map(|file| self.modules().join(file)).collect())
    }
}

/// Paths in the folder of a kernel.
pub const IMAGE: &str = "vmlinuz";
/// The folder of the kernel's modules.
pub const MODULES: &str = "lib/modules";

/// depmod's list of the modules and their dependencies.
const DEPENDENCIES: &str = "modules.dep";

/// The name of the only file or folder in a folder.
pub fn only_entry(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let entry = entries.next().context("the folder is empty")??;
    ensure!(
        entries.next().is_none(),
        "{} has several entries",
        folder.display()
    );
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// The name of a module, from the name of its file.
fn name_of(file: &str) -> &str {
    file.split('.').next().unwrap_or_default()
}

/// The modules and programs of a machine.
pub struct Equipment<'a> {
    pub modules: &'a [&'a str],
    /// Names on the machine's `PATH`, and the programs that are copied there with their libraries.
    pub programs: &'a [(&'a str, PathBuf)],
}

/// Boots a machine that runs a command and ends, and returns the command's output.
///
/// # Errors
/// The machine does not end within `patience`, or the command fails.
pub fn run_in(
    kernel: &Kernel,
    folder: &Path,
    equipment: &Equipment<'_>,
    command: &str,
    patience: Duration,
) -> Result<String> {
    let initramfs = pack(kernel, folder, equipment, command)?;
    let [console, output] = ["console", "output"].map(|name| folder.join(name));
    let file = |path: &Path| format!("file:{}", path.display());
    let mut machine = Daemon::start(
        Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2"])
            .args(["-m", "1G", "-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-serial", &file(&console), "-serial", &file(&output)])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(initramfs)
            // On a kernel panic the machine ends at once (panic=-1).
            .args(["-append", "console=ttyS0 quiet panic=-1"]),
        &folder.join("qemu.log"),
    )?;
    let ended = machine.wait(patience);
    let read = |path| fs::read(path).map(|text| String::from_utf8_lossy(&text).replace('\r', ""));
    let (console, output) = (read(console)?, read(output)?);
    ended.with_context(|| format!("{}: {output}{console}", kernel.release))?;
    let Some((output, status)) = output.rsplit_once(STATUS) else {
        anyhow::bail!("{} ended early: {output}{console}", kernel.release);
    };
    ensure!(
        status.trim() == "0",
        "on {}: {output}{console}",
        kernel.release
    );
    Ok(output.to_owned())
}

/// With rdrand, so that the kernel has random numbers at boot. Without cmpxchg16b: QEMU 7.2 sometimes emulates it
/// wrongly, and the kernel's allocator crashes.
const CPU: &str = "qemu64,+rdrand,-cx16";

/// Marks the end of the command's output; the exit code follows.
const STATUS: &str = "vm: status ";

/// Packs the machine's files into the archive that it boots from.
fn pack(
    kernel: &Kernel,
    folder: &Path,
    equipment: &Equipment<'_>,
    command: &str,
) -> Result<PathBuf> {
    let root = folder.join("root");
    for name in ["bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    let own = [("busybox", which("busybox")?)];
    for (name, program) in own.iter().chain(equipment.programs) {
        let place = root.join("bin").join(name);
        fs::copy(program, &place).with_context(|| program.display().to_string())?;
        run(Command::new("strip").arg("--strip-debug").arg(place))?;
        for library in libraries_of(program)? {
            let place = root.join(library.strip_prefix("/")?);
            fs::create_dir_all(place.parent().context("a library has no folder")?)?;
            fs::copy(library, place)?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    let mut loads = String::new();
    for module in equipment.modules {
        for file in kernel.files_of(module)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let place = format!("modules/{}.ko", name_of(&name));
            if !root.join(&place).exists() {
                unpack(&file, &root.join(&place))?;
                loads.push_str(&format!("insmod /{place}\n"));
            }
        }
    }
    let init = root.join("init");
    fs::write(
        &init,
        INIT.replace("LOADS", &loads).replace("COMMAND", command),
    )?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    symlink("busybox", root.join("bin/sh"))?;
    let archive = folder.join("initramfs");
    run(Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc > \"$0\""])
        .arg(&archive)
        .current_dir(&root))?;
    Ok(archive)
}

/// The init script. The kernel prints to the first serial line, the command to the second.
const INIT: &str = "#!/bin/sh
export PATH=/bin HOME=/tmp RUST_BACKTRACE=0
/bin/busybox mount -t proc proc /proc
busybox --install -s /bin 2>/dev/null
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
ip link set lo up
exec >/dev/ttyS1 2>&1
LOADS
COMMAND
echo \"vm: status $?\"
poweroff -f
";

/// The libraries that a program loads, and the loader.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
    let loaded = Command::new("ldd").arg(program).output()?;
    let loaded = String::from_utf8_lossy(&loaded.stdout).into_owned();
    let words = loaded.split_whitespace();
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// Copies a module uncompressed: busybox' insmod does not uncompress it.
fn unpack(file: &Path, place: &Path) -> Result<()> {
    if file.extension().is_some_and(|kind| kind == "xz") {
        let unpacked = Command::new("xz").args(["-dc"]).arg(file).output()?;
        ensure!(unpacked.status.success(), "{} is broken", file.display());
        fs::write(place, unpacked.stdout)?;
    } else {
        fs::copy(file, place)?;
    }
    Ok(())
}
