//! Interfaces that go down, come up, or go for good.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::StartError;
use crate::{host::Interface, netlink::Mirror, routes::Routes};

/// Watches over the interfaces while workers are busy.
#[derive(Debug)]
pub(super) struct NicWatch {
    routes: Arc<ArcSwap<Routes>>,
    generation: u64,
    nics: Vec<Interface>,
}

impl NicWatch {
    pub(super) fn new(nics: &[Interface], mirror: &Mirror) -> Self {
        let routes = mirror.routes();
        let generation = routes.load().generation();
        Self { routes, generation, nics: nics.to_vec() }
    }

    /// Tells of interfaces that went down or up.
    ///
    /// # Errors
    /// When one is gone: nothing is attached to it any more.
    pub(super) fn look(&mut self) -> Result<(), StartError> {
        let routes = self.routes.load();
        if routes.generation() == self.generation {
            return Ok(());
        }
        self.generation = routes.generation();
        for nic in &mut self.nics {
            let Some(link) = routes.link(nic.index) else {
                return Err(StartError::NicGone(nic.name.clone()));
            };
            if std::mem::replace(&mut nic.up, link.up) != link.up {
                let (nic, state) = (&nic.name, if link.up { "up" } else { "down" });
                tracing::warn!(nic, state, "the interface changed");
            }
            if std::mem::replace(&mut nic.mtu, link.mtu) < link.mtu {
                tracing::warn!(nic = nic.name, "a larger MTU is used after the next start");
            }
        }
        Ok(())
    }
}
