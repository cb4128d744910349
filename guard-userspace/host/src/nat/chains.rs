//! Chains of rules, and what becomes of a packet that passes through them.

use std::collections::{BTreeMap, BTreeSet};

use super::condition::NatCondition;
use crate::{NatHook, NatRule, NatRules, NatTarget};

/// Chains of all tables, by their full names.
#[derive(Debug, Default)]
pub struct NatChains {
    by_name: BTreeMap<String, NatChain>,
}

#[derive(Debug, Default)]
struct NatChain {
    /// Packets begin here.
    hook: Option<NatHook>,
    rules: Vec<ChainRule>,
}

/// A rule of a chain, as far as it matters here.
#[derive(Debug)]
pub struct ChainRule {
    /// One for each way to match it.
    pub conditions: Vec<NatCondition>,
    pub action: ChainAction,
}

#[derive(Clone, Debug)]
pub enum ChainAction {
    Rewrite(NatTarget),
    /// To a chain of the same table, by its full name.
    Jump(String),
    /// It matches everything, and no rule of the chain behind it is reached.
    Stop,
}

/// The kernel follows jumps sixteen deep (NFT_JUMP_STACK_SIZE).
const MAX_DEPTH: usize = 16;

/// So many rules are followed at most; with Kubernetes, there are tens of thousands.
const MAX_STEPS: usize = 200_000;

impl NatChains {
    pub fn declare(&mut self, name: &str, hook: Option<NatHook>) {
        let chain = self.by_name.entry(name.to_owned()).or_default();
        chain.hook = hook.or(chain.hook);
    }

    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub fn add(&mut self, chain: &str, rule: ChainRule) {
        let chain = self.by_name.entry(chain.to_owned()).or_default();
        chain.rules.push(rule);
    }

    /// What is rewritten of the packets that pass through the chains.
    pub fn rules(&self) -> NatRules {
        let mut walk = Walk {
            chains: self,
            steps: 0,
            found: Vec::new(),
        };
        for (name, chain) in &self.by_name {
            if let Some(hook) = chain.hook {
                walk.follow(name, hook, &NatCondition::default(), &mut BTreeSet::new());
            }
        }
        let Walk { steps, found, .. } = walk;
        let mut rules: Vec<NatRule> = Vec::new();
        for rule in found {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        NatRules {
            rules,
            is_partial: steps > MAX_STEPS,
        }
    }
}

struct Walk<'a> {
    chains: &'a NatChains,
    steps: usize,
    found: Vec<NatRule>,
}

impl<'a> Walk<'a> {
    /// `above`: the chains that are being followed.
    fn follow(
        &mut self,
        name: &'a str,
        hook: NatHook,
        condition: &NatCondition,
        above: &mut BTreeSet<&'a str>,
    ) {
        let Some(chain) = self.chains.by_name.get(name) else {
            return;
        };
        if above.len() >= MAX_DEPTH || !above.insert(name) {
            return;
        }
        for ChainRule { conditions, action } in &chain.rules {
            if matches!(action, ChainAction::Stop) {
                break;
            }
            for own in conditions {
                self.steps += 1;
                if self.steps > MAX_STEPS {
                    break;
                }
                let Some(both) = condition.and(own) else {
                    continue;
                };
                match action {
                    ChainAction::Rewrite(to) => self.found.push(rule(&both, hook, to, name)),
                    ChainAction::Jump(chain) => self.follow(chain, hook, &both, above),
                    ChainAction::Stop => {}
                }
            }
        }
        above.remove(name);
    }
}

fn rule(condition: &NatCondition, hook: NatHook, to: &NatTarget, chain: &str) -> NatRule {
    let NatCondition {
        family,
        protocol,
        ports,
        destination,
        source,
        interface,
    } = condition.clone();
    NatRule {
        hook,
        family,
        protocol,
        ports,
        destination,
        source,
        interface,
        to: to.clone(),
        chain: chain.to_owned(),
    }
}
