//! Lists the libraries that the binary is linked with, and their licences, which must accompany it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
};

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, Metadata, Package, PackageId, TargetKind};

/// The packages of the binary: the command, and the kernel program that is embedded in it.
const ROOTS: [&str; 2] = ["guard-userspace", "guard-ebpf"];

/// The prefixes of the names of licence files.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

pub fn third_party(metadata: &Metadata) -> Result<String> {
    let mut text = String::from(
        "guard is linked with Rust's standard library (MIT OR Apache-2.0) and with these:\n\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked(metadata)? {
        let name = format!("{} {}", package.name, package.version);
        let license = package.license.as_deref().unwrap_or("see its text");
        writeln!(text, "{name}: {license}")?;
        for licence in licences(package)? {
            texts.entry(licence).or_default().push(name.clone());
        }
    }
    for (licence, names) in texts {
        write!(
            text,
            "\n{}\n{}\n\n{licence}\n",
            "-".repeat(80),
            names.join(", ")
        )?;
    }
    Ok(text)
}

/// The linked packages of others, by name and version.
fn linked(metadata: &Metadata) -> Result<Vec<&Package>> {
    let resolve = metadata
        .resolve
        .as_ref()
        .context("Cargo resolved nothing")?;
    let nodes: BTreeMap<&PackageId, _> =
        resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let packages: BTreeMap<&PackageId, &Package> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package))
        .collect();
    let roots = metadata.packages.iter();
    let mut waiting: Vec<&PackageId> = roots
        .filter(|package| ROOTS.contains(&package.name.as_str()))
        .map(|package| &package.id)
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        // The dependencies of a macro are not linked into the binary.
        if is_macro(packages[id]) || !seen.insert(id) {
            continue;
        }
        let linked = nodes[id].deps.iter().filter(|dependency| {
            let mut kinds = dependency.dep_kinds.iter();
            kinds.any(|kind| kind.kind == DependencyKind::Normal)
        });
        waiting.extend(linked.map(|dependency| &dependency.pkg));
    }
    let mut linked: Vec<&Package> = seen
        .into_iter()
        .map(|id| packages[id])
        .filter(|package| package.source.is_some())
        .collect();
    linked.sort_unstable_by_key(|package| (package.name.as_str(), &package.version));
    Ok(linked)
}

fn is_macro(package: &Package) -> bool {
    let mut targets = package.targets.iter();
    targets.any(|target| target.kind.contains(&TargetKind::ProcMacro))
}

/// The licence texts of a package.
fn licences(package: &Package) -> Result<Vec<String>> {
    let folder = package.manifest_path.parent();
    let folder = folder.context("a manifest without a folder")?;
    let mut paths: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.to_uppercase();
            path.is_file() && NAMES.iter().any(|start| name.starts_with(start))
        })
        .collect();
    paths.sort_unstable();
    let texts = paths.iter().map(|path| {
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        Ok(lines.join("\n").trim_matches('\n').to_owned())
    });
    texts.collect()
}
