// SPDX-License-Identifier: GPL-2.0

//! Our module, which comes and goes while KVM's own nested code is there as well.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

use crate::guest::machine;
use crate::module;
use crate::tap::Skip;

/// Our module.
pub struct Ours {
    path: PathBuf,
    name: String,
}

impl Ours {
    /// Returns the module if it is loaded, and nested virtualization is there without it.
    pub fn find(kvm: &Kvm, path: &Path) -> Result<Self> {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let name = stem.context("a module without a name")?.replace('-', "_");
        if module::find(&name)?.is_none() {
            return Err(Skip("our module is not loaded".into()).into());
        }
        let ours = Self {
            path: path.to_owned(),
            name,
        };
        ours.take_out()?;
        let offered = machine::offered(kvm);
        ours.put_in()?;
        match offered {
            Ok(_) => Ok(ours),
            Err(_) => Err(Skip("KVM has no nested code of its own".into()).into()),
        }
    }

    fn is_in(&self) -> Result<bool> {
        Ok(module::find(&self.name)?.is_some())
    }

    /// Puts the module in, if it is out.
    pub fn put_in(&self) -> Result<()> {
        if self.is_in()? {
            return Ok(());
        }
        module::load(&self.path, "")
    }

    /// Takes the module out, if it is in; no machine may use it.
    pub fn take_out(&self) -> Result<()> {
        if !self.is_in()? {
            return Ok(());
        }
        module::unload(&self.name)
    }

    /// Takes the module out if it is in, and puts it in if it is out.
    pub fn toggle(&self) -> Result<()> {
        if self.is_in()? {
            self.take_out()
        } else {
            self.put_in()
        }
    }
}
