//! A trie over words: DNS labels from the right, path segments from the left.

use super::words::WordMap;
use crate::model::Str;

/// Values by sequences of words. Nodes live in one vector; the first is the root.
#[derive(Clone, Debug)]
pub(super) struct Trie<V> {
    nodes: Vec<Node<V>>,
}

#[derive(Clone, Debug)]
struct Node<V> {
    parent: Option<u32>,
    value: Option<V>,
    children: WordMap<Str, u32>,
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { nodes: Vec::new() }
    }
}

impl<V> Trie<V> {
    /// Stores a value. The first at a place stays.
    pub(super) fn insert<'w>(&mut self, words: impl Iterator<Item = &'w str>, value: V) {
        let mut at = self.node(None);
        for word in words {
            at = match self.nodes[at as usize].children.get(word) {
                Some(child) => *child,
                None => {
                    let child = self.push(Some(at));
                    self.nodes[at as usize].children.insert(word.into(), child);
                    child
                }
            };
        }
        self.nodes[at as usize].value.get_or_insert(value);
    }

    /// The values along `words`, the longest sequence first; the root's last.
    pub(super) fn along<'s, 'w>(
        &'s self,
        words: impl Iterator<Item = &'w str>,
    ) -> impl Iterator<Item = &'s V> {
        let mut deepest = self.nodes.first();
        for word in words {
            // Most tables have no children at all here: no word need be hashed.
            let Some(node) = deepest.filter(|n| !n.children.is_empty()) else { break };
            #[cfg(test)]
            super::words::steps::add();
            let Some(child) = node.children.get(word) else { break };
            deepest = Some(&self.nodes[*child as usize]);
        }
        let up = |node: &&'s Node<V>| node.parent.map(|p| &self.nodes[p as usize]);
        std::iter::successors(deepest, up).filter_map(|node| node.value.as_ref())
    }

    fn node(&mut self, parent: Option<u32>) -> u32 {
        if self.nodes.is_empty() { self.push(parent) } else { 0 }
    }

    fn push(&mut self, parent: Option<u32>) -> u32 {
        self.nodes.push(Node { parent, value: None, children: WordMap::default() });
        // Four billion nodes would need more memory than there is.
        u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 nodes")
    }
}
