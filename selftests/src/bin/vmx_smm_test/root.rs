// SPDX-License-Identifier: GPL-2.0

//! Interruptions of L1.

use selftests::expect;
use selftests::guest::layout::{VMCS, VMXON_REGION};
use selftests::guest::vmx::script::{vmclear, vmptrld, vmptrst, vmread, vmwrite, vmxon, Answer};
use selftests::guest::vmx::{field, Operation};
use selftests::tap::Point;

use crate::{check, interrupt, ports, shut_down, Fixture, Within, HANDLER, NOWHERE, PORT};

/// The field that shows whether a VMCS is the one that it was.
const MARK: u64 = field::GUEST_RSP as u64;

/// The handler sets CR4.VMXE, which no processor in system-management mode can: MOV EAX, CR4; OR
/// EAX, 0x2000; MOV CR4, EAX; OUT; RSM.
const SETS_VMXE: [u8; 16] = [
    0x0f, 0x20, 0xe0, 0x66, 0x0d, 0x00, 0x20, 0x00, 0x00, 0x0f, 0x22, 0xe0, 0xe6, 0xe0, 0x0f, 0xaa,
];

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L1 is interrupted outside of VMX operation", |fixture| {
            let mut machine = fixture.outside(&HANDLER)?;
            interrupt(&machine)?;
            machine.at_stop = Some(|machine| check(machine, Within::Nothing));
            let (answers, stops) = machine.run(&[vmxon(VMXON_REGION), vmptrst()])?;
            expect("what user space saw", ports(&stops), vec![PORT])?;
            expect(
                "L1 then",
                answers,
                vec![Answer::Done(0), Answer::Done(NOWHERE)],
            )
        }),
        Point::new("L1 is interrupted in VMX operation", |fixture| {
            let mut machine = fixture.machine(&HANDLER)?;
            interrupt(&machine)?;
            machine.at_stop = Some(|machine| check(machine, Within::Root));
            let (answers, stops) = machine.run(&[vmptrst()])?;
            expect("what user space saw", ports(&stops), vec![PORT])?;
            expect("VMPTRST", answers, vec![Answer::Done(NOWHERE)])
        }),
        Point::new("L1 is interrupted with a current VMCS", |fixture| {
            let mut machine = fixture.machine(&HANDLER)?;
            machine.execute(&with_vmcs())?;
            for _ in 0..3 {
                interrupt(&machine)?;
                machine.at_stop = Some(|machine| check(machine, Within::Vmcs));
                let (answers, stops) = machine.run(&[vmptrst(), vmread(MARK)])?;
                expect("what user space saw", ports(&stops), vec![PORT])?;
                let expected = [VMCS, 0x1234_5678].map(Answer::Done);
                expect("L1 then", answers, expected.to_vec())?;
            }
            Ok(())
        }),
        Point::new(
            "the handler cannot set CR4.VMXE, and its end is that of the mode",
            |fixture| {
                let mut machine = fixture.machine(&SETS_VMXE)?;
                interrupt(&machine)?;
                shut_down(&mut machine)
            },
        ),
    ]
}

/// Makes a VMCS current.
pub fn with_vmcs() -> [Operation; 3] {
    [vmclear(VMCS), vmptrld(VMCS), vmwrite(MARK, 0x1234_5678)]
}
