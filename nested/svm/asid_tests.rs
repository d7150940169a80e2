// SPDX-License-Identifier: GPL-2.0

use super::*;

/// What an entry made of its machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Loaded {
    asid: Option<Assigned>,
    flush: Option<Flush>,
    synchronized: bool,
    l1_flushed: bool,
}

impl Machine for Loaded {
    fn load(&mut self, asid: Option<Assigned>, flush: Flush) {
        self.asid = asid;
        self.flush = Some(flush);
    }

    fn synchronize(&mut self) {
        self.synchronized = true;
    }

    fn flush_l1(&mut self) {
        self.l1_flushed = true;
    }
}

const CPU: i32 = 3;

fn assigned(asid: u32) -> Assigned {
    Assigned {
        cpu: CPU,
        generation: 1,
        asid,
    }
}

fn tables(nested_cr3: u64) -> Tables {
    Tables {
        nested_cr3,
        cr4: 0x20,
        efer: 0x1d01,
        gmet: false,
    }
}

fn request(asid: u32, tlb_control: u8) -> Request {
    Request {
        asid,
        tlb_control,
        tables: tables(0x1000),
    }
}

fn enter(spaces: &mut AddressSpaces, request: Request) -> Loaded {
    let mut loaded = Loaded::default();
    spaces.enter(request, CPU).carry_out(&mut loaded);
    loaded
}

/// L2 runs once, with the ASID `asid` of the host.
fn run(spaces: &mut AddressSpaces, request: Request, asid: u32) {
    let _loaded = enter(spaces, request);
    spaces.note_run();
    spaces.leave(Left {
        assigned: Some(assigned(asid)),
        tlb_control: tlb::NOTHING,
    });
}

/// Address spaces 1 and 2, which have the ASIDs 11 and 12 of the host.
fn two_spaces() -> AddressSpaces {
    let mut spaces = AddressSpaces::new(FlushByAsid::Present);
    run(&mut spaces, request(1, 0), 11);
    run(&mut spaces, request(2, 0), 12);
    spaces
}

const NEW: Loaded = Loaded {
    asid: None,
    flush: Some(Flush::Asid),
    synchronized: true,
    l1_flushed: false,
};

fn kept(asid: u32, flush: Flush) -> Loaded {
    Loaded {
        asid: Some(assigned(asid)),
        flush: Some(flush),
        synchronized: flush != Flush::Nothing,
        l1_flushed: false,
    }
}

#[test]
fn the_first_use_of_an_address_space_flushes() {
    let mut spaces = AddressSpaces::new(FlushByAsid::Present);
    assert_eq!(enter(&mut spaces, request(1, 0)), NEW);
}

#[test]
fn an_address_space_keeps_its_translations() {
    let mut spaces = two_spaces();
    assert_eq!(enter(&mut spaces, request(1, 0)), kept(11, Flush::Nothing));
    spaces.note_run();
    spaces.leave(Left {
        assigned: Some(assigned(11)),
        tlb_control: 0,
    });
    assert_eq!(enter(&mut spaces, request(2, 0)), kept(12, Flush::Nothing));
}

#[test]
fn each_value_of_tlb_control_flushes_what_it_says() {
    for value in 0..=u8::MAX {
        let mut spaces = two_spaces();
        let loaded = enter(&mut spaces, request(1, value));
        spaces.note_run();
        spaces.leave(Left {
            assigned: Some(assigned(11)),
            tlb_control: 0,
        });
        let other = enter(&mut spaces, request(2, 0));

        match value {
            0 => assert_eq!(loaded, kept(11, Flush::Nothing)),
            3 => assert_eq!(loaded, kept(11, Flush::Asid)),
            7 => assert_eq!(loaded, kept(11, Flush::NonGlobal)),
            // 1, and those that are reserved.
            _ => {
                assert!(loaded.l1_flushed);
                assert_eq!(
                    loaded,
                    Loaded {
                        l1_flushed: true,
                        ..kept(11, Flush::Asid)
                    }
                );
                assert_eq!(other, kept(12, Flush::Asid));
                continue;
            }
        }
        assert_eq!(other, kept(12, Flush::Nothing));
    }
}

#[test]
fn flushes_are_written_as_the_manual_says() {
    assert_eq!(Flush::Nothing.tlb_control(), 0);
    assert_eq!(Flush::NonGlobal.tlb_control(), 7);
    assert_eq!(Flush::Asid.tlb_control(), 3);
    assert_eq!(tlb::ALL, 1);
}

#[test]
fn without_flush_by_asid_a_flush_takes_another_asid() {
    for value in [1, 3, 7] {
        let mut spaces = AddressSpaces::new(FlushByAsid::Absent);
        run(&mut spaces, request(1, 0), 11);
        assert_eq!(enter(&mut spaces, request(1, value)).asid, None);
    }
}

#[test]
fn other_tables_are_a_flush() {
    let other = [
        tables(0x2000),
        Tables {
            cr4: 0,
            ..tables(0x1000)
        },
        Tables {
            efer: 0,
            ..tables(0x1000)
        },
        Tables {
            gmet: true,
            ..tables(0x1000)
        },
    ];

    for tables in other {
        let mut spaces = two_spaces();
        let changed = Request {
            tables,
            ..request(1, 0)
        };
        assert_eq!(enter(&mut spaces, changed), kept(11, Flush::Asid));
    }
}

#[test]
fn a_flush_that_was_not_done_is_not_lost() {
    let mut spaces = two_spaces();
    assert_eq!(enter(&mut spaces, request(1, 3)), kept(11, Flush::Asid));
    spaces.leave(Left {
        assigned: Some(assigned(11)),
        tlb_control: 3,
    });
    assert_eq!(enter(&mut spaces, request(1, 0)), kept(11, Flush::Asid));
}

#[test]
fn a_flush_by_l0_that_was_not_done_is_not_lost() {
    let mut spaces = two_spaces();
    let _loaded = enter(&mut spaces, request(1, 0));
    spaces.note_run();
    spaces.leave(Left {
        assigned: Some(assigned(11)),
        tlb_control: 3,
    });
    // L1 has not asked for it: its tables need not be read again.
    let expected = Loaded {
        synchronized: false,
        ..kept(11, Flush::Asid)
    };
    assert_eq!(enter(&mut spaces, request(1, 0)), expected);
}

#[test]
fn a_flush_by_l0_without_flush_by_asid_is_not_lost() {
    let mut spaces = AddressSpaces::new(FlushByAsid::Absent);
    run(&mut spaces, request(1, 0), 11);
    assert_eq!(enter(&mut spaces, request(1, 0)), kept(11, Flush::Nothing));
    spaces.leave(Left {
        assigned: Some(Assigned {
            generation: 0,
            ..assigned(11)
        }),
        tlb_control: 0,
    });
    assert_eq!(enter(&mut spaces, request(1, 0)).asid, None);
}

#[test]
fn a_flush_by_l0_reaches_all_that_do_not_run() {
    let mut spaces = two_spaces();
    let expected = |asid| Loaded {
        synchronized: false,
        ..kept(asid, Flush::Asid)
    };
    spaces.flush();
    assert_eq!(enter(&mut spaces, request(1, 0)), expected(11));
    spaces.note_run();
    // That of the guest that runs is flushed by L0 itself.
    spaces.flush();
    spaces.leave(Left {
        assigned: Some(assigned(11)),
        tlb_control: 0,
    });
    assert_eq!(enter(&mut spaces, request(1, 0)), kept(11, Flush::Nothing));
    spaces.note_run();
    spaces.leave(Left {
        assigned: Some(assigned(11)),
        tlb_control: 0,
    });
    assert_eq!(enter(&mut spaces, request(2, 0)), expected(12));
}

#[test]
fn an_asid_is_not_used_on_another_processor() {
    let mut spaces = two_spaces();
    let mut loaded = Loaded::default();
    spaces.enter(request(1, 0), CPU + 1).carry_out(&mut loaded);
    assert_eq!(loaded.asid, None);
    // L1 has no part in it.
    assert!(!loaded.synchronized);
}

#[test]
fn invlpga_flushes_the_address_space_that_it_names() {
    let mut spaces = two_spaces();
    assert_eq!(spaces.invalidate(1), Invalidated::Later);
    assert_eq!(spaces.invalidate(77), Invalidated::Later);
    assert_eq!(enter(&mut spaces, request(2, 0)), kept(12, Flush::Nothing));
    spaces.note_run();
    assert_eq!(spaces.invalidate(2), Invalidated::InUse);
    // It does not run any more before L1 does.
    spaces.leave(Left {
        assigned: Some(assigned(12)),
        tlb_control: 0,
    });
    assert_eq!(enter(&mut spaces, request(2, 0)), kept(12, Flush::Asid));
    spaces.note_run();
    spaces.leave(Left {
        assigned: Some(assigned(12)),
        tlb_control: 0,
    });
    assert_eq!(enter(&mut spaces, request(1, 0)), kept(11, Flush::Asid));
}

#[test]
fn the_address_space_that_was_not_used_for_longest_is_given_up() {
    let mut spaces = AddressSpaces::new(FlushByAsid::Present);
    for asid in 1..=8 {
        run(&mut spaces, request(asid, 0), asid + 10);
    }
    run(&mut spaces, request(1, 0), 11);
    run(&mut spaces, request(9, 0), 19);
    for asid in [1, 3, 4, 5, 6, 7, 8, 9] {
        assert_eq!(
            enter(&mut spaces, request(asid, 0)),
            kept(asid + 10, Flush::Nothing)
        );
        spaces.note_run();
        spaces.leave(Left {
            assigned: Some(assigned(asid + 10)),
            tlb_control: 0,
        });
    }
    assert_eq!(enter(&mut spaces, request(2, 0)), NEW);
}

#[test]
fn nothing_is_left_of_what_was_forgotten() {
    let mut spaces = two_spaces();
    spaces.forget();
    assert_eq!(enter(&mut spaces, request(1, 0)), NEW);
}

#[path = "asid_model.rs"]
mod model;

#[test]
fn tables_are_those_of_l1_without_nested_paging() {
    let mut control = Control12 {
        nested_cr3: crate::address::Gpa::from_raw(0x5000),
        misc_ctl: misc::GMET,
        ..Control12::default()
    };
    assert_eq!(Tables::new(&control, 0x20, 0xd01), Tables::NONE);

    control.misc_ctl |= misc::NESTED_PAGING;
    let tables = Tables::new(&control, 0x20, 0xd01);
    assert!(tables.gmet && tables != Tables::NONE);
    assert_eq!(
        (tables.nested_cr3, tables.cr4, tables.efer),
        (0x5000, 0x20, 0xd01)
    );
}
