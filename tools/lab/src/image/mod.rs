// SPDX-License-Identifier: GPL-2.0

//! Root filesystems of the levels, and the forms in which machines boot them.
//!
//! There is one image for all levels. Each level packs the files that the next one needs from its
//! own root filesystem (see `guest/lib.sh`), so that a further level costs nothing but its time.

pub mod initramfs;
pub mod iso;
pub mod level;
pub mod rootfs;
