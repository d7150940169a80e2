// SPDX-License-Identifier: GPL-2.0

//! What a VM exit to L1 does: what L1 finds in vmcs12, and the state that it goes on with.

pub mod interruption;
