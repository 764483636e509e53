//! What goes upstream for a name: nothing if the cache knows, one question for all who ask the same at once,
//! and the next server if one does not answer.

use super::cache::{Cache, Found, Key};
use super::exchange;
use super::servers::Servers;
use super::tunnel::Budget;
use crate::wire::dns::{self, Query};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// Rounds over all servers, and how long each server has in them. Resolvers of programs give up after 5 s: by
/// then two servers had their turn.
const ROUNDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// Answers that are kept, and their bytes.
const ANSWERS: usize = 2048;
const BYTES: usize = 1 << 20;
/// Codes of servers that may know no EDNS (RFC 6891 7): FORMERR and NOTIMP.
const WITHOUT_EDNS: [u16; 2] = [1, 4];

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It was not asked for: over a limit, which the text names.
    Limited(String),
    /// Nobody answered, or nobody knew.
    Unanswered,
}

pub type Outcome = Result<Arc<Found>, Missing>;

pub struct Lookup(Mutex<State>);

struct State {
    servers: Servers,
    cache: Cache,
    budget: Budget,
    /// Questions under way, for as long as somebody waits for them.
    asking: HashMap<Key, Weak<OnceCell<Outcome>>>,
}

impl Lookup {
    pub fn new(servers: Servers) -> Lookup {
        Lookup(Mutex::new(State {
            servers,
            cache: Cache::bounded(ANSWERS, BYTES),
            budget: Budget::new(Instant::now()),
            asking: HashMap::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What servers say to `query`, unchecked but for being a sound answer to it. `spelled`: the policy names
    /// that very name.
    pub async fn find(&self, query: &Query, spelled: bool) -> Outcome {
        let key = (query.name.clone(), query.kind);
        let turn = {
            let state = &mut *self.state();
            let now = Instant::now();
            if state.servers.refresh() {
                state.cache.clear();
            }
            if let Some(found) = state.cache.get(&key, now) {
                return Ok(found);
            }
            match state.asking.get(&key).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let admitted = state.budget.admit(&query.name, spelled, now);
                    admitted.map_err(Missing::Limited)?;
                    let turn = Arc::new(OnceCell::new());
                    state.asking.retain(|_, turn| turn.strong_count() > 0);
                    state.asking.insert(key.clone(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        // If the one who asks gives up, the next one who waits goes on.
        turn.get_or_init(|| self.ask(query, key)).await.clone()
    }

    async fn ask(&self, query: &Query, key: Key) -> Outcome {
        for patience in ROUNDS {
            let servers = self.state().servers.order(Instant::now());
            let mut silent = false;
            for server in servers {
                let said = timeout(patience, one(server, query)).await;
                let answered = matches!(said, Ok(Ok(_)));
                let mut state = self.state();
                state.servers.note(server, answered, Instant::now());
                if let Ok(Ok(Some(found))) = said {
                    let found = Arc::new(found);
                    state.cache.put(key, Arc::clone(&found));
                    return Ok(found);
                }
                silent |= !answered;
            }
            // Who said that it does not know says so again.
            if !silent {
                break;
            }
        }
        Err(Missing::Unanswered)
    }
}

/// What one server says. None: that it failed, or does not want to.
async fn one(server: SocketAddr, query: &Query) -> std::io::Result<Option<Found>> {
    let anything = |_: IpAddr| true;
    for edns in [true, false] {
        let id = exchange::id()?;
        let fits = |bytes: &[u8]| dns::is_answer(bytes, query, id);
        let bytes = exchange::ask(server, &dns::question(query, id, edns), fits).await?;
        let Ok(answer) = dns::check_answer(&bytes, query, id, anything) else {
            break;
        };
        match answer.failed {
            None => {
                return Ok(Some(Found {
                    bytes,
                    id,
                    ttl: answer.ttl,
                    born: Instant::now(),
                }))
            }
            Some(code) if WITHOUT_EDNS.contains(&code) => {}
            Some(_) => break,
        }
    }
    Ok(None)
}
