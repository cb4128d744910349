//! Requires that a type name is declared once in the whole workspace. The compiler accepts a `Service` in each crate,
//! but readers would have to find out which of them is meant.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use lab::process::run as output;
use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Ident, ItemEnum, ItemStruct, ItemTrait, ItemTraitAlias, ItemType, ItemUnion, Macro,
    visit::{self, Visit},
};

/// Fails if a tracked Rust file declares a type name that is declared elsewhere too.
pub fn require_unique(workspace: &Path) -> Result<()> {
    let tracked = output(
        Command::new("git")
            .current_dir(workspace)
            .args(["ls-files", "-z", "*.rs"]),
    )?;
    let mut names = TypeNames::default();
    for file in tracked.split_terminator('\0') {
        let path = workspace.join(file);
        // Git still lists a tracked file whose deletion is not staged.
        if path.exists() {
            let source = fs::read_to_string(path).with_context(|| format!("reading {file}"))?;
            names.read(file, &source)?;
        }
    }
    ensure!(
        !names.places.is_empty(),
        "git tracks no Rust file that declares a type"
    );
    let repeated: Vec<String> = names.repeated().collect();
    ensure!(
        repeated.is_empty(),
        "type names that are declared more than once; rename all but one of each:\n{}",
        repeated.join("\n")
    );
    Ok(())
}

/// The places where each struct, enum, union, trait and type alias is declared, also inside functions. Associated types
/// do not count: a trait gives them their names.
#[derive(Default)]
struct TypeNames {
    /// By name: `file:line`.
    places: BTreeMap<String, Vec<String>>,
}

impl TypeNames {
    fn read(&mut self, file: &str, source: &str) -> Result<()> {
        let syntax = syn::parse_file(source).with_context(|| format!("parsing {file}"))?;
        TypeNameVisitor { file, names: self }.visit_file(&syntax);
        Ok(())
    }

    /// One line for each name that is declared more than once.
    fn repeated(&self) -> impl Iterator<Item = String> {
        let repeated = self.places.iter().filter(|(_, places)| places.len() > 1);
        repeated.map(|(name, places)| format!("{name}: {}", places.join(", ")))
    }
}

struct TypeNameVisitor<'a> {
    file: &'a str,
    names: &'a mut TypeNames,
}

impl TypeNameVisitor<'_> {
    fn add(&mut self, name: &Ident) {
        let place = format!("{}:{}", self.file, name.span().start().line);
        let places = self.names.places.entry(name.to_string()).or_default();
        places.push(place);
    }

    /// In the tokens of a macro, `type` is ignored: it may be an associated type.
    fn add_of_macro(&mut self, tokens: TokenStream) {
        let mut is_declaration = false;
        for token in tokens {
            match token {
                TokenTree::Ident(name) if is_declaration => {
                    self.add(&name);
                    is_declaration = false;
                }
                TokenTree::Ident(word) => {
                    is_declaration = ["struct", "enum", "union", "trait"]
                        .iter()
                        .any(|kind| word == kind);
                }
                TokenTree::Group(group) => {
                    self.add_of_macro(group.stream());
                    is_declaration = false;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => is_declaration = false,
            }
        }
    }
}

impl<'ast> Visit<'ast> for TypeNameVisitor<'_> {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.add(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        self.add(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_union(&mut self, item: &'ast ItemUnion) {
        self.add(&item.ident);
        visit::visit_item_union(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        self.add(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_trait_alias(&mut self, item: &'ast ItemTraitAlias) {
        self.add(&item.ident);
        visit::visit_item_trait_alias(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast ItemType) {
        self.add(&item.ident);
        visit::visit_item_type(self, item);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.add_of_macro(item.tokens.clone());
        visit::visit_macro(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeated(sources: &[(&str, &str)]) -> Vec<String> {
        let mut names = TypeNames::default();
        for (file, source) in sources {
            names.read(file, source).unwrap();
        }
        names.repeated().collect()
    }

    #[test]
    fn a_name_that_two_files_declare_is_found_whatever_it_names() {
        let declarations = [
            "struct Link;",
            "enum Link {}",
            "union Link { index: u32 }",
            "trait Link {}",
            "type Link = u32;",
        ];
        for declaration in declarations {
            let found = repeated(&[("a.rs", "pub struct Link;"), ("b.rs", declaration)]);
            assert_eq!(found, ["Link: a.rs:1, b.rs:1"], "{declaration}");
        }
    }

    #[test]
    fn a_name_inside_of_a_module_or_a_function_counts() {
        let source = "struct Link;
            mod tests {
                struct Link;
            }
            impl Host {
                fn links() {
                    if true {
                        struct Link;
                    }
                }
            }";
        let found = repeated(&[("a.rs", source)]);
        assert_eq!(found, ["Link: a.rs:1, a.rs:3, a.rs:8"]);
    }

    #[test]
    fn a_name_that_a_macro_declares_counts() {
        let source = "macro_rules! reasons {
            ($($name:ident),*) => {
                pub enum Reason { $($name),* }
                pub struct $name;
            };
        }";
        let found = repeated(&[("a.rs", "struct Reason;"), ("b.rs", source)]);
        assert_eq!(found, ["Reason: a.rs:1, b.rs:3"]);
    }

    #[test]
    fn associated_types_and_names_declared_once_are_not_found() {
        let source = "struct Link;
            trait Read {
                type Output;
            }
            impl Read for Link {
                type Output = Link;
            }
            struct Output;
            use other::Link as _;";
        assert!(repeated(&[("a.rs", source)]).is_empty());
    }
}
