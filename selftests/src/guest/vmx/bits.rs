// SPDX-License-Identifier: GPL-2.0

//! The bits of the control words of the VMCS, and the reasons of exits.

macro_rules! bits {
    ($(#[$doc:meta])* $module:ident: $($(#[$bit_doc:meta])* $name:ident = $bit:expr;)*) => {
        $(#[$doc])*
        pub mod $module {
            $($(#[$bit_doc])* pub const $name: u64 = 1 << $bit;)*
        }
    };
}

bits! {
    /// Pin-based controls.
    pin:
    /// Interrupts exit.
    EXTERNAL_INTERRUPT = 0;
    /// NMIs exit.
    NMI = 3;
    /// Blocking by NMI is L2's.
    VIRTUAL_NMI = 5;
    /// A timer exits.
    PREEMPTION_TIMER = 6;
    /// Interrupts come by a descriptor in memory.
    POSTED_INTERRUPTS = 7;
}

bits! {
    /// Primary processor-based controls.
    primary:
    /// Exit when an interrupt could be delivered.
    INTERRUPT_WINDOW = 2;
    /// The TSC has an offset.
    TSC_OFFSETTING = 3;
    /// HLT exits.
    HLT = 7;
    /// INVLPG exits.
    INVLPG = 9;
    /// MWAIT exits.
    MWAIT = 10;
    /// RDPMC exits.
    RDPMC = 11;
    /// RDTSC exits.
    RDTSC = 12;
    /// Loads of CR3 exit.
    CR3_LOAD = 15;
    /// Stores of CR3 exit.
    CR3_STORE = 16;
    /// Loads of CR8 exit.
    CR8_LOAD = 19;
    /// Stores of CR8 exit.
    CR8_STORE = 20;
    /// CR8 is in the virtual-APIC page.
    TPR_SHADOW = 21;
    /// Exit when an NMI could be delivered.
    NMI_WINDOW = 22;
    /// MOV DR exits.
    MOV_DR = 23;
    /// Instructions for ports exit.
    IO = 24;
    /// Instructions for ports exit by bitmaps.
    IO_BITMAPS = 25;
    /// Exit after an instruction.
    MONITOR_TRAP = 27;
    /// Instructions for MSRs exit by a bitmap.
    MSR_BITMAPS = 28;
    /// MONITOR exits.
    MONITOR = 29;
    /// PAUSE exits.
    PAUSE = 30;
    /// There are secondary controls.
    SECONDARY = 31;
}

bits! {
    /// Secondary processor-based controls.
    secondary:
    /// Accesses to the APIC are virtual.
    APIC_ACCESSES = 0;
    /// L1 has page tables for L2.
    EPT = 1;
    /// Instructions for descriptor tables exit.
    DESCRIPTOR_TABLE = 2;
    /// There is RDTSCP.
    RDTSCP = 3;
    /// MSRs of the APIC are virtual.
    X2APIC = 4;
    /// Translations have a tag.
    VPID = 5;
    /// WBINVD exits.
    WBINVD = 6;
    /// L2 may be in real mode.
    UNRESTRICTED = 7;
    /// Reads of the APIC are virtual.
    APIC_REGISTERS = 8;
    /// Interrupts are delivered without L1.
    INTERRUPT_DELIVERY = 9;
    /// Loops of PAUSE exit.
    PAUSE_LOOP = 10;
    /// RDRAND exits.
    RDRAND = 11;
    /// There is INVPCID.
    INVPCID = 12;
    /// There are functions for L2.
    VMFUNC = 13;
    /// L2 has a VMCS of its own.
    SHADOW_VMCS = 14;
    /// RDSEED exits.
    RDSEED = 16;
    /// Written pages are logged.
    PML = 17;
    /// There are XSAVES and XRSTORS.
    XSAVES = 20;
    /// The right to execute depends on the mode.
    MODE_BASED_EXECUTE = 22;
    /// The TSC is multiplied.
    TSC_SCALING = 25;
}

bits! {
    /// Exit controls.
    exit:
    /// DR7 and DEBUGCTL are stored.
    SAVE_DEBUG = 2;
    /// L1 is in 64-bit mode.
    HOST_64_BIT = 9;
    /// An interrupt that exits is taken from the controller.
    ACKNOWLEDGE = 15;
    /// The page-attribute table is stored.
    SAVE_PAT = 18;
    /// The page-attribute table is loaded.
    LOAD_PAT = 19;
    /// EFER is stored.
    SAVE_EFER = 20;
    /// EFER is loaded.
    LOAD_EFER = 21;
    /// The rest of the timer is stored.
    SAVE_TIMER = 22;
}

bits! {
    /// Entry controls.
    entry:
    /// DR7 and DEBUGCTL are loaded.
    LOAD_DEBUG = 2;
    /// L2 is in long mode.
    LONG_MODE = 9;
    /// L2 is in system-management mode.
    SMM = 10;
    /// There is no dual monitor any more.
    DEACTIVATE_DUAL_MONITOR = 11;
    /// The page-attribute table is loaded.
    LOAD_PAT = 14;
    /// EFER is loaded.
    LOAD_EFER = 15;
}

/// Reasons of exits.
pub mod reason {
    macro_rules! reasons {
        ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
            $($(#[$doc])* pub const $name: u64 = $value;)*
        };
    }

    reasons! {
        /// An exception or an NMI.
        EXCEPTION = 0;
        /// An interrupt.
        EXTERNAL_INTERRUPT = 1;
        /// A triple fault.
        TRIPLE_FAULT = 2;
        /// INIT.
        INIT = 3;
        /// SIPI.
        SIPI = 4;
        /// An interrupt could be delivered.
        INTERRUPT_WINDOW = 7;
        /// An NMI could be delivered.
        NMI_WINDOW = 8;
        /// A switch of tasks.
        TASK_SWITCH = 9;
        /// CPUID.
        CPUID = 10;
        /// HLT.
        HLT = 12;
        /// INVD.
        INVD = 13;
        /// INVLPG.
        INVLPG = 14;
        /// RDPMC.
        RDPMC = 15;
        /// RDTSC.
        RDTSC = 16;
        /// VMCALL.
        VMCALL = 18;
        /// VMCLEAR; the other VMX instructions follow.
        VMCLEAR = 19;
        /// VMLAUNCH.
        VMLAUNCH = 20;
        /// VMPTRLD.
        VMPTRLD = 21;
        /// VMREAD.
        VMREAD = 23;
        /// VMRESUME.
        VMRESUME = 24;
        /// VMWRITE.
        VMWRITE = 25;
        /// VMXON.
        VMXON = 27;
        /// An access to a control register.
        CONTROL_REGISTER = 28;
        /// MOV DR.
        MOV_DR = 29;
        /// An instruction for ports.
        IO = 30;
        /// RDMSR.
        RDMSR = 31;
        /// WRMSR.
        WRMSR = 32;
        /// The state of L2 is not valid.
        INVALID_STATE = 0x8000_0021;
        /// An MSR cannot be loaded.
        MSR_LOAD = 0x8000_0022;
        /// MWAIT.
        MWAIT = 36;
        /// The monitor trap.
        MONITOR_TRAP = 37;
        /// MONITOR.
        MONITOR = 39;
        /// PAUSE.
        PAUSE = 40;
        /// The priority is below the threshold.
        TPR = 43;
        /// An access to the APIC.
        APIC_ACCESS = 44;
        /// The end of a virtual interrupt.
        EOI = 45;
        /// An access to GDTR or IDTR.
        GDTR_IDTR = 46;
        /// An access to LDTR or TR.
        LDTR_TR = 47;
        /// An access that EPT does not allow.
        EPT_VIOLATION = 48;
        /// An entry of EPT that is not valid.
        EPT_MISCONFIGURATION = 49;
        /// INVEPT.
        INVEPT = 50;
        /// RDTSCP.
        RDTSCP = 51;
        /// The timer.
        PREEMPTION_TIMER = 52;
        /// INVVPID.
        INVVPID = 53;
        /// WBINVD.
        WBINVD = 54;
        /// XSETBV.
        XSETBV = 55;
        /// A write to a register of the virtual APIC.
        APIC_WRITE = 56;
        /// RDRAND.
        RDRAND = 57;
        /// INVPCID.
        INVPCID = 58;
        /// VMFUNC.
        VMFUNC = 59;
        /// RDSEED.
        RDSEED = 61;
        /// The page-modification log is full.
        PML_FULL = 62;
    }
}
