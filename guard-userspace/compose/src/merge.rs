//! Merges files as Compose does: mappings merge, lists grow, other values are replaced.

use super::yaml::{Mapping, Node, Value};

/// Puts `over` on top of `base`. A node with the tag `!reset` stays in the result, so that it also removes the value of
/// files further below.
pub fn merge(base: Node, over: Node) -> Node {
    if over.tag.is_some() || base.is_reset() {
        return over;
    }
    let value = match (base.value, over.value) {
        (Value::Mapping(base), Value::Mapping(over)) => Value::Mapping(merge_mappings(base, over)),
        (Value::Sequence(mut base), Value::Sequence(over)) => {
            base.extend(over);
            Value::Sequence(base)
        }
        // To Compose, `NAME=value` and `NAME: value` are the same.
        (Value::Mapping(base), Value::Sequence(over)) => {
            let mut items = items(base);
            items.extend(over);
            Value::Sequence(items)
        }
        (Value::Sequence(mut base), Value::Mapping(over)) => {
            base.extend(items(over));
            Value::Sequence(base)
        }
        (base, Value::Null) => base,
        (_, value) => {
            return Node { value, ..over };
        }
    };
    Node { value, ..base }
}

fn merge_mappings(mut base: Mapping, over: Mapping) -> Mapping {
    for (name, over) in over {
        match base.get_mut(&name) {
            Some(below) => {
                let place = below.node.place.clone();
                let node = std::mem::replace(&mut below.node, Node::null(place));
                let place = over.node.place.clone();
                below.node = merge(node, over.node);
                // The key is the one before the value that was taken.
                if below.node.place.is_at(&place) {
                    below.key = over.key;
                }
            }
            None => {
                base.insert(name, over);
            }
        }
    }
    base
}

/// One mapping for each entry.
fn items(mapping: Mapping) -> Vec<Node> {
    let entries = mapping.into_iter();
    entries
        .map(|(name, entry)| Node {
            place: entry.key.clone(),
            in_flow: entry.node.in_flow,
            value: Value::Mapping(Mapping::from_iter([(name, entry)])),
            tag: None,
        })
        .collect()
}
