// SPDX-License-Identifier: GPL-2.0

//! What runs at the same time, and what must be true afterwards.

use super::*;

const ADDRESS: u64 = 0x0040_3000;
const NEXT: u64 = ADDRESS + 0x1000;
const OLD: u64 = 0x7000;
const NEW: u64 = 0x9000;
const USED: u64 = RWX | ACCESSED | DIRTY;

fn page(machine: &Machine, root: &RootUse, address: u64) -> Option<u64> {
    let found = machine.translate(root, address)?;
    // What the entry is known to be made of is what it maps.
    assert_eq!(found.physical, HOST + found.page.into_raw());
    Some(found.page.into_raw())
}

#[test]
fn faults_on_the_same_tables_make_one_set_of_them() {
    explore(300, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | RWX);
        map_page(&machine.memory.0, NEXT, NEW | RWX);

        let threads: Vec<_> = [(ADDRESS, READS), (ADDRESS, WRITES), (NEXT, READS)]
            .into_iter()
            .map(|(address, access)| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let root = machine.root_again();
                    let mapped = machine.fault(&root, address, access);
                    assert!(matches!(mapped, Some(Mapped::Done { .. })), "{mapped:?}");
                    machine.shadow.read().unwrap().release_root(root);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        machine.check();
        quietly(|| {
            // An entry that one has just made is never worse than none for another.
            assert_eq!(page(&machine, &root, ADDRESS), Some(OLD));
            assert_eq!(page(&machine, &root, NEXT), Some(NEW));
            machine.reclaim();
            // The root and three tables, with two pages each, besides the arrays.
            let used = machine.shadow.read().unwrap().pages_in_use();
            let arrays = {
                let mut shadow = machine.shadow.write().unwrap();
                let _ = shadow.zap_all(&NoReports);
                shadow.reclaim(&NoTlbs, &NoReports);
                shadow.pages_in_use() - 2
            };
            assert_eq!(used - arrays, 8);
        });
        machine.check();
    });
}

#[test]
fn a_fault_never_maps_a_page_that_l0_has_moved() {
    explore(500, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | RWX);

        let faults: Vec<_> = [1, 2]
            .into_iter()
            .map(|_| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let root = machine.root_again();
                    machine.fault(&root, ADDRESS, WRITES);
                    machine.shadow.read().unwrap().release_root(root);
                })
            })
            .collect();
        machine.move_memory(OLD);
        for thread in faults {
            thread.join().unwrap();
        }
        quietly(|| {
            if let Some(found) = machine.translate(&root, ADDRESS) {
                assert_eq!(found.physical, HOST + (1 << 32) + OLD);
            }
        });
        machine.check();
    });
}

#[test]
fn nothing_stale_is_installed_after_a_flush() {
    explore(1500, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | USED);

        let fault = {
            let machine = machine.clone();
            thread::spawn(move || {
                let root = machine.root_again();
                machine.fault_once(&root, ADDRESS, WRITES);
                machine.shadow.read().unwrap().release_root(root);
            })
        };
        point();
        map_page(&machine.memory.0, ADDRESS, NEW | USED);
        machine.flush();
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        fault.join().unwrap();
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        machine.check();
    });
}

#[test]
fn nothing_stale_is_installed_in_a_table_that_was_there() {
    explore(1500, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | USED);
        map_page(&machine.memory.0, NEXT, OLD | USED);
        quietly(|| machine.fault_once(&root, NEXT, WRITES));

        // Two faults with marks of their own, and two flushes.
        let threads: Vec<_> = [1, 2]
            .into_iter()
            .map(|_| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let root = machine.root_again();
                    machine.fault_once(&root, ADDRESS, WRITES);
                    machine.shadow.read().unwrap().release_root(root);
                })
            })
            .collect();
        let other = {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.flush();
            })
        };
        point();
        map_page(&machine.memory.0, ADDRESS, NEW | USED);
        machine.flush();
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        for thread in threads.into_iter().chain([other]) {
            thread.join().unwrap();
        }
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        machine.check();
    });
}

#[test]
fn what_may_not_be_written_any_more_is_not_writable_after_a_flush() {
    explore(1000, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | USED);
        quietly(|| machine.fault_once(&root, ADDRESS, WRITES));

        let threads: Vec<_> = [1, 2]
            .into_iter()
            .map(|who| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let root = machine.root_again();
                    match who {
                        1 => drop(machine.fault_once(&root, ADDRESS, WRITES)),
                        _ => drop(machine.flush()),
                    }
                    machine.shadow.read().unwrap().release_root(root);
                })
            })
            .collect();
        point();
        let entry = entry_of(ADDRESS, Level::Page4K);
        machine.memory.0.set(entry, (OLD | USED) & !WRITE);
        machine.flush();
        let is_writable = |found: Translation| found.permissions.has(Permissions::WRITE);
        assert!(!machine.translate(&root, ADDRESS).is_some_and(is_writable));
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(!machine.translate(&root, ADDRESS).is_some_and(is_writable));
        machine.check();
    });
}

#[test]
fn a_flush_that_is_late_brings_nothing_back() {
    explore(1000, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | USED);
        quietly(|| machine.fault_once(&root, ADDRESS, WRITES));
        // One flush finds that the page may not be written any more, another that it is gone.
        let entry = entry_of(ADDRESS, Level::Page4K);
        machine.memory.0.set(entry, (OLD | USED) & !WRITE);

        let late = {
            let machine = machine.clone();
            thread::spawn(move || machine.flush())
        };
        point();
        machine.memory.0.set(entry, 0);
        machine.flush();
        assert_eq!(page(&machine, &root, ADDRESS), None);
        late.join().unwrap();
        assert_eq!(page(&machine, &root, ADDRESS), None);
        machine.check();
        assert_eq!(quietly(|| machine.shadow.read().unwrap().leaves()), 0);
    });
}

#[test]
fn a_table_that_l1_replaces_is_detached_once() {
    explore(700, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | USED);
        quietly(|| machine.fault_once(&root, ADDRESS, WRITES));
        let directory = entry_of(ADDRESS, Level::Page2M);
        let other = TOP + 0x60_0000;
        machine.memory.0.set(other + 3 * 8, NEW | USED);

        let threads: Vec<_> = [1, 2, 4]
            .into_iter()
            .map(|who| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let root = machine.root_again();
                    match who {
                        4 => drop(machine.flush()),
                        _ => drop(machine.fault_once(&root, ADDRESS, WRITES)),
                    }
                    machine.shadow.read().unwrap().release_root(root);
                })
            })
            .collect();
        point();
        machine.memory.0.set(directory, other | RWX | ACCESSED);
        machine.flush();
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        machine.reclaim();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        machine.check();
        quietly(|| machine.reclaim());
        machine.check();
    });
}

#[test]
fn a_root_that_is_dropped_while_others_fault_is_empty_or_new() {
    explore(500, || {
        let machine = Machine::new();
        quietly(|| {
            let root = machine.root();
            machine.shadow.read().unwrap().release_root(root);
        });
        map_page(&machine.memory.0, ADDRESS, OLD | RWX);

        let threads: Vec<_> = [1, 2]
            .into_iter()
            .map(|_| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let found = machine.shadow.read().unwrap().find_root(&machine.key);
                    let root = match found {
                        Some(root) => root,
                        None => {
                            let mut shadow = machine.shadow.write().unwrap();
                            shadow.load_root(&machine.key, &NoReports).unwrap()
                        }
                    };
                    let mapped = machine.fault(&root, ADDRESS, READS);
                    assert!(matches!(mapped, Some(Mapped::Done { .. })), "{mapped:?}");
                    let shadow = machine.shadow.read().unwrap();
                    assert!(
                        shadow.root_address(&root).is_some(),
                        "a root in use was freed"
                    );
                    shadow.release_root(root);
                })
            })
            .collect();
        for _ in 0..2 {
            let mut shadow = machine.shadow.write().unwrap();
            shadow.drop_oldest_root(&NoReports);
            let _ = shadow.zap_all(&NoReports);
            shadow.reclaim(&NoTlbs, &NoReports);
        }
        for thread in threads {
            thread.join().unwrap();
        }
        machine.check();
    });
}

#[test]
fn aging_and_flushing_and_faulting_lose_nothing() {
    explore(500, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | USED);
        quietly(|| machine.fault_once(&root, ADDRESS, READS));

        let threads: Vec<_> = [1, 2, 3]
            .into_iter()
            .map(|who| {
                let machine = machine.clone();
                thread::spawn(move || {
                    let root = machine.root_again();
                    match who {
                        1 => drop(machine.fault(&root, ADDRESS, WRITES)),
                        2 => drop(machine.flush()),
                        _ => {
                            let frames = Frames::new(Gpa::from_raw(OLD), 0x1000);
                            let shadow = machine.shadow.read().unwrap();
                            shadow.age(&frames, Age::Clear, &NoReports);
                        }
                    }
                    machine.shadow.read().unwrap().release_root(root);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        machine.check();
        let is_mapped = machine.translate(&root, ADDRESS).is_some();
        let leaves = machine.shadow.read().unwrap().leaves();
        assert_eq!(leaves, u64::from(is_mapped));
    });
}

#[test]
fn no_write_to_a_table_is_missed_while_it_begins_to_be_tracked() {
    struct Protector<'a>(&'a Probe);
    impl WriteTracker for Protector<'_> {
        fn protect(&self, page: Gpa) -> Result<(), Untrackable> {
            if page.into_raw() != entry_of(ADDRESS, Level::Page4K) & !0xfff {
                return Err(Untrackable);
            }
            self.0.store(1);
            Ok(())
        }
    }
    explore(700, || {
        let machine = Machine::new();
        let root = machine.root();
        map_page(&machine.memory.0, ADDRESS, OLD | USED);
        let protected = Arc::new(quietly(|| Probe::new(0)));
        quietly(|| {
            machine.fault_once(&root, ADDRESS, WRITES);
            for _ in 0..3 {
                machine.flush();
            }
        });

        let settle = {
            let (machine, protected) = (machine.clone(), protected.clone());
            thread::spawn(move || {
                let mut shadow = machine.shadow.write().unwrap();
                shadow.settle(
                    &machine.sequences,
                    &machine.memory,
                    &Protector(&protected),
                    &NoTlbs,
                    &NoReports,
                );
            })
        };
        // L1 writes: at once if it can, otherwise by a fault that makes the page writable.
        point();
        if quietly(|| protected.load()) != 0 {
            let shadow = machine.shadow.read().unwrap();
            let table = entry_of(ADDRESS, Level::Page4K) & !0xfff;
            shadow.tracked_write(Gpa::from_raw(table));
            protected.store(0);
        }
        map_page(&machine.memory.0, ADDRESS, NEW | USED);
        machine.flush();
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        settle.join().unwrap();
        machine.flush();
        assert_ne!(page(&machine, &root, ADDRESS), Some(OLD));
        machine.check();
    });
}
