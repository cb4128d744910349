//! Chains of NAT rules: follows their jumps, and collects the rules that rewrite destinations.

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
    /// The hook at which packets enter this chain; `None`: only jumps lead to it.
    hook: Option<NatHook>,
    rules: Vec<ChainRule>,
}

/// The conditions and the action of a rule.
#[derive(Debug)]
pub struct ChainRule {
    /// The rule matches a packet that meets any of these.
    pub conditions: Vec<NatCondition>,
    pub action: ChainAction,
}

#[derive(Clone, Debug)]
pub enum ChainAction {
    Rewrite(NatTarget),
    /// Jumps to a chain of the same table, by its full name.
    Jump(String),
    /// The rule matches every packet, so no later rule of the chain is reached.
    Stop,
}

/// The kernel follows jumps sixteen deep (NFT_JUMP_STACK_SIZE).
const MAX_DEPTH: usize = 16;

/// The most rules that are followed. A Kubernetes host has tens of thousands.
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

    /// The rules that rewrite the destination of packets in these chains.
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
    /// Follows a chain. `above`: the chains whose jumps led here.
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
