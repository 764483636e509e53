//! The inode table: what each node that a guest was told of is, and under which names it was seen.
//!
//! A node holds no descriptor. It is resolved by its names whenever it is used, and is only itself if what is there
//! has the same identity; else it is stale (ESTALE), and the guest looks it up again. So the table costs memory
//! alone, and what does not fit any more can be dropped: numbers are never given twice.

use crate::handles::Handle;
use crate::share::Identity;
use crate::wire::ROOT;
use rustix::io::{Errno, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// Names kept of one file that has several.
const NAMES: usize = 4;
/// How deep a directory may be.
const DEEPEST: usize = 2048;
/// How many nodes are looked at for one to drop.
const LOOKED_AT: usize = 64;

struct Place {
    parent: u64,
    name: Box<[u8]>,
}

struct Node {
    identity: Identity,
    /// Where it was seen, the latest first; a directory is in one place.
    places: Vec<Place>,
    lookups: u64,
    /// Nodes that have a place in it.
    children: usize,
    used: bool,
    /// When the guest changed it last, from and to: nanoseconds since 1970.
    changed: (i64, i64),
    open: Weak<Handle>,
}

/// What a node is to be found by.
pub struct Trace {
    pub identity: Identity,
    /// Paths beneath the root, names separated by `/`, the likeliest first.
    pub paths: Vec<Vec<u8>>,
    /// The file as the guest has it open, if it has: it may have no name any more.
    pub open: Option<Arc<Handle>>,
}

pub struct Nodes {
    /// Boxed: a table is up to half empty.
    nodes: HashMap<u64, Box<Node>>,
    known: HashMap<Identity, u64>,
    /// In which order they are looked at when one has to go; may name some that are gone.
    order: VecDeque<u64>,
    last: u64,
    most: usize,
}

impl Nodes {
    pub fn new(root: Identity, most: usize) -> Self {
        let node = Node {
            identity: root,
            places: Vec::new(),
            lookups: 1,
            children: 0,
            used: true,
            changed: (0, 0),
            open: Weak::new(),
        };
        Self {
            nodes: HashMap::from([(ROOT, Box::new(node))]),
            known: HashMap::from([(root, ROOT)]),
            order: VecDeque::new(),
            last: ROOT,
            most: most.max(2),
        }
    }

    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Whether so many are known that entries are better told without making them nodes.
    pub fn crowded(&self) -> bool {
        self.nodes.len() > self.most / 2
    }

    /// ESTALE for a node that was never given, is forgotten or was dropped (F10).
    pub fn trace(&mut self, id: u64) -> Result<Trace> {
        let node = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        node.used = true;
        let node = &self.nodes[&id];
        let paths = match id {
            ROOT => vec![Vec::new()],
            _ => node.places.iter().flat_map(|at| self.path(at)).collect(),
        };
        Ok(Trace {
            identity: node.identity,
            paths,
            open: node.open.upgrade(),
        })
    }

    /// Where it was seen last: a directory, and the name there.
    pub fn place_of(&self, id: u64) -> Option<(u64, Box<[u8]>)> {
        let place = self.nodes.get(&id)?.places.first()?;
        Some((place.parent, place.name.clone()))
    }

    fn path(&self, place: &Place) -> Option<Vec<u8>> {
        let mut names = vec![&place.name];
        let mut at = place.parent;
        while at != ROOT {
            let place = self.nodes.get(&at)?.places.first()?;
            names.push(&place.name);
            at = place.parent;
            if names.len() > DEEPEST {
                return None;
            }
        }
        names.reverse();
        let parts: Vec<&[u8]> = names.into_iter().map(|name| &name[..]).collect();
        Some(parts.join(&b'/'))
    }

    /// The node of what `name` in `parent` was seen to be, looked up once more. ESTALE if the parent is gone, ENFILE
    /// if there are as many nodes as may be and all of them are in use.
    pub fn adopt(&mut self, parent: u64, name: &[u8], identity: Identity) -> Result<u64> {
        if !self.nodes.contains_key(&parent) {
            return Err(Errno::STALE);
        }
        if let Some(&id) = self.known.get(&identity) {
            self.place(id, parent, name)?;
            let node = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
            node.lookups = node.lookups.saturating_add(1);
            node.used = true;
            return Ok(id);
        }
        if self.nodes.len() >= self.most {
            self.drop_one(parent)?;
            // A forgotten directory may have been kept for the dropped one alone.
            if !self.nodes.contains_key(&parent) {
                return Err(Errno::STALE);
            }
        }
        self.last += 1;
        let id = self.last;
        let place = Place {
            parent,
            name: name.into(),
        };
        let node = Node {
            identity,
            places: vec![place],
            lookups: 1,
            children: 0,
            used: true,
            changed: (0, 0),
            open: Weak::new(),
        };
        self.nodes.insert(id, Box::new(node));
        self.known.insert(identity, id);
        self.hold(parent);
        if self.order.len() > 2 * self.nodes.len() + LOOKED_AT {
            let nodes = &self.nodes;
            self.order.retain(|id| nodes.contains_key(id));
        }
        self.order.push_back(id);
        Ok(id)
    }

    /// Notes where a node is now, if it is known: a rename, or another name.
    pub fn seen(&mut self, parent: u64, name: &[u8], identity: Identity) {
        if let Some(&id) = self.known.get(&identity) {
            // Where it cannot be noted it is looked up again.
            let _ = self.place(id, parent, name);
        }
    }

    /// What had this identity has no name any more: the next file with it is another one.
    pub fn retire(&mut self, identity: &Identity) {
        self.known.remove(identity);
    }

    pub fn opened(&mut self, id: u64, handle: &Arc<Handle>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open = Arc::downgrade(handle);
        }
    }

    /// The guest changed it meanwhile.
    pub fn change(&mut self, id: u64, meanwhile: (i64, i64)) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.changed = meanwhile;
        }
    }

    pub fn change_known(&mut self, identity: &Identity, meanwhile: (i64, i64)) {
        if let Some(&id) = self.known.get(identity) {
            self.change(id, meanwhile);
        }
    }

    /// When the guest changed it last.
    pub fn own(&self, identity: &Identity) -> Option<(i64, i64)> {
        let id = self.known.get(identity)?;
        self.nodes.get(id).map(|node| node.changed)
    }

    pub fn forget(&mut self, id: u64, lookups: u64) {
        if id == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(lookups);
            self.let_go(id);
        }
    }

    /// Everything but the root.
    pub fn clear(&mut self) {
        let root = self.nodes[&ROOT].identity;
        let last = self.last;
        *self = Self::new(root, self.most);
        self.last = last;
    }

    fn place(&mut self, id: u64, parent: u64, name: &[u8]) -> Result<()> {
        if !self.nodes.contains_key(&parent) {
            return Err(Errno::STALE);
        }
        let node = self.nodes.get(&id).ok_or(Errno::STALE)?;
        let is = |place: &Place| place.parent == parent && &*place.name == name;
        if id == ROOT || node.places.first().is_some_and(is) {
            // The root has no place: only a mount on itself could give it one.
            return if id == ROOT { Err(Errno::LOOP) } else { Ok(()) };
        }
        let directory = node.identity.is_directory();
        if directory && self.within(parent, id) {
            // The host moved one into the other and back: the older place is no longer true.
            return Err(Errno::STALE);
        }
        self.hold(parent);
        let node = self.nodes.get_mut(&id).expect("it was there");
        let mut left: Vec<u64> = Vec::new();
        node.places.retain(|place| {
            let keep = !directory && !is(place);
            if !keep {
                left.push(place.parent);
            }
            keep
        });
        let place = Place {
            parent,
            name: name.into(),
        };
        node.places.insert(0, place);
        left.extend(
            node.places
                .drain(NAMES.min(node.places.len())..)
                .map(|at| at.parent),
        );
        for parent in left {
            self.leave(parent);
        }
        Ok(())
    }

    /// Whether `id` is on the way from the root to `inner`.
    fn within(&self, inner: u64, id: u64) -> bool {
        let mut at = inner;
        for _ in 0..DEEPEST {
            if at == id {
                return true;
            }
            match self.nodes.get(&at).and_then(|node| node.places.first()) {
                Some(place) => at = place.parent,
                None => return false,
            }
        }
        true
    }

    fn hold(&mut self, parent: u64) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children += 1;
        }
    }

    fn leave(&mut self, parent: u64) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children = node.children.saturating_sub(1);
            self.let_go(parent);
        }
    }

    /// Removes a node that nobody knows any more, and then the directories that were kept for its path alone.
    fn let_go(&mut self, id: u64) {
        let mut going = vec![id];
        while let Some(id) = going.pop() {
            match self.nodes.get(&id) {
                Some(node) if id != ROOT && node.lookups == 0 && node.children == 0 => {}
                _ => continue,
            }
            for parent in self.remove(id) {
                if let Some(node) = self.nodes.get_mut(&parent) {
                    node.children = node.children.saturating_sub(1);
                    going.push(parent);
                }
            }
        }
    }

    fn remove(&mut self, id: u64) -> Vec<u64> {
        let Some(node) = self.nodes.remove(&id) else {
            return Vec::new();
        };
        // A retired one's identity may be another's by now.
        if self.known.get(&node.identity) == Some(&id) {
            self.known.remove(&node.identity);
        }
        node.places.iter().map(|place| place.parent).collect()
    }

    /// Drops one that has not been used for long: not open, without known children, and not `but`.
    fn drop_one(&mut self, but: u64) -> Result<()> {
        let mut looked_at = 0;
        let mut second = None;
        while looked_at < LOOKED_AT {
            let Some(id) = self.order.pop_front() else {
                break;
            };
            let Some(node) = self.nodes.get_mut(&id) else {
                continue;
            };
            looked_at += 1;
            let pinned = node.children > 0 || node.open.strong_count() > 0 || id == but;
            if !pinned && !node.used {
                self.evict(id);
                return Ok(());
            }
            if !pinned && second.is_none() {
                second = Some(id);
            }
            node.used = false;
            self.order.push_back(id);
        }
        // All of them are used: the one that was met first goes, so that this takes bounded time.
        self.evict(second.ok_or(Errno::NFILE)?);
        Ok(())
    }

    fn evict(&mut self, id: u64) {
        for parent in self.remove(id) {
            self.leave(parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every count is that of what it counts, and nothing is known that is not there.
    fn sound(nodes: &Nodes) {
        assert!(nodes.nodes.len() <= nodes.most);
        for (id, node) in &nodes.nodes {
            let places = nodes.nodes.values().flat_map(|node| &node.places);
            let children = places.filter(|place| place.parent == *id).count();
            assert_eq!(node.children, children, "{id}");
            assert!(node.places.len() <= NAMES);
            assert!(*id == ROOT || node.lookups > 0 || children > 0);
        }
        for (identity, id) in &nodes.known {
            assert_eq!(nodes.nodes[id].identity, *identity);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_table_is_sound_after_any_changes(
            changes in prop::collection::vec((0..5u8, 1..20u64, 0..12u64, 0..4u8), 0..200)
        ) {
            let identity = |inode: u64| Identity::made_up(inode, inode % 3 != 0);
            let mut nodes = Nodes::new(Identity::made_up(1000, true), 8);
            for (what, id, inode, name) in changes {
                match what {
                    0 | 1 => drop(nodes.adopt(id, &[name], identity(inode))),
                    2 => nodes.seen(id, &[name], identity(inode)),
                    3 => nodes.retire(&identity(inode)),
                    _ => nodes.forget(id, u64::from(name)),
                }
                sound(&nodes);
                for id in 0..20 {
                    let _ = nodes.trace(id);
                }
            }
        }
    }
}
