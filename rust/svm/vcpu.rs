// SPDX-License-Identifier: GPL-2.0

//! A vCPU of kvm-amd.

use core::{
    ffi::CStr,
    mem::{
        align_of,
        offset_of,
        size_of, //
    },
    ops::Deref, //
};
use kernel::types::Opaque;
use kvm::{
    bindings,
    mmu::LoadedRoot,
    MappedPage,
    PageCache,
    Vcpu,
    VmStats, //
};
use nested::{
    address::Gpa,
    memory::Inaccessible,
    svm::{
        asid::AddressSpaces,
        check::Pat,
        exit_code::ExitCode,
        merge::Host,
        permission_map::MsrMap,
        Control12,
        Feature,
        Save12,
        VirtualCpu,
        Vmcb,
        Vmcb01,
        Vmcb02, //
    }, //
};

/// A vCPU of kvm-amd, whose first member is that of KVM.
///
/// # Invariants
///
/// As those of [`Vcpu`]. In addition EFER.SVME has been set: vmcb02, its permission map and
/// [`Private`] as the provider's data are there, unless an op says otherwise.
#[repr(transparent)]
pub(crate) struct SvmVcpu(Opaque<bindings::vcpu_svm>);

/// What the module keeps of a vCPU's nested state.
pub(crate) struct Private {
    /// The address spaces of L2.
    pub(crate) address_spaces: AddressSpaces,
    /// The VMCBs that L1 uses.
    pub(crate) pages: PageCache,
    /// The root of the tables that L2 runs on.
    pub(crate) root: LoadedRoot,
}

/// What kvm-amd keeps of a vCPU's nested state, borrowed at the same time.
pub(crate) struct Parts<'a> {
    /// The snapshot of the control area of vmcb12.
    pub(crate) control12: &'a Control12,
    /// The VMCB of L1.
    pub(crate) vmcb01: &'a mut Vmcb01,
    /// The VMCB of L2.
    pub(crate) vmcb02: &'a mut Vmcb02,
    /// L1's virtual processor.
    pub(crate) cpu: &'a GuestCpu,
}

impl SvmVcpu {
    /// Makes a reference of the pointer that kvm-amd passes to an op.
    ///
    /// # Safety
    ///
    /// `svm` must be the argument of an op that kvm-amd calls for a vCPU which fulfils the
    /// invariants of the type, and the reference must not outlive the call.
    pub(crate) unsafe fn from_raw<'a>(svm: *mut bindings::vcpu_svm) -> &'a mut Self {
        // SAFETY: By the requirements of this function the pointer is valid for `'a`. While ops
        // nest, the reference of the outer one is not used: it has called into KVM.
        unsafe { &mut *svm.cast() }
    }

    /// As [`Self::from_raw`], for ops that KVM's common code calls.
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn from_vcpu<'a>(vcpu: *mut bindings::kvm_vcpu) -> &'a mut Self {
        // SAFETY: By the requirements of this function; the vCPU is the first member.
        unsafe { Self::from_raw(vcpu.cast()) }
    }

    /// Returns the pointer that kvm-amd knows the vCPU by.
    pub(crate) fn raw(&self) -> *mut bindings::vcpu_svm {
        self.0.get()
    }

    /// Returns the members that no type of ours stands for.
    pub(crate) fn fields(&mut self) -> &mut bindings::vcpu_svm {
        // SAFETY: By the type invariants; KVM cannot use the vCPU while it is borrowed.
        unsafe { &mut *self.raw() }
    }

    /// Returns L1's virtual processor.
    pub(crate) fn cpu(&self) -> &GuestCpu {
        GuestCpu::new(self)
    }

    /// Returns the nested state.
    #[inline]
    pub(crate) fn parts(&mut self) -> Parts<'_> {
        let cpu: *const GuestCpu = GuestCpu::new(self);
        let nested = &raw mut self.fields().nested;
        let vmcb01 = self.fields().vmcb01.ptr;

        // SAFETY: By the type invariants the VMCBs are there; the types have the same layout as the
        // C ones, as is checked below. All are different objects, and borrowed as long as `self`.
        // `GuestCpu` accesses none of them.
        unsafe {
            Parts {
                control12: &*(&raw const (*nested).ctl).cast(),
                vmcb01: &mut *vmcb01.cast(),
                vmcb02: &mut *(*nested).vmcb02.ptr.cast(),
                cpu: &*cpu,
            }
        }
    }

    /// Returns the snapshot of the control area of vmcb12.
    #[inline]
    pub(crate) fn control12(&self) -> &Control12 {
        // SAFETY: By the type invariants the vCPU is valid; the type has the same layout as the C
        // one, as is checked below.
        unsafe { &*(&raw const (*self.raw()).nested.ctl).cast() }
    }

    /// Returns the snapshot of the control area of vmcb12, to change it.
    #[inline]
    pub(crate) fn control12_mut(&mut self) -> &mut Control12 {
        // SAFETY: As above.
        unsafe { &mut *(&raw mut self.fields().nested.ctl).cast() }
    }

    /// Returns the snapshot of the state-save area of vmcb12, to change it.
    #[inline]
    pub(crate) fn save12_mut(&mut self) -> &mut Save12 {
        // SAFETY: As above.
        unsafe { &mut *(&raw mut self.fields().nested.save).cast() }
    }

    /// Returns the snapshot of vmcb12, for the time that it takes to enter L2.
    ///
    /// # Safety
    ///
    /// During `'a`, nothing may change the snapshot: neither [`Self::control12_mut()`] and
    /// [`Self::save12_mut()`], nor running L2.
    #[inline]
    pub(crate) unsafe fn snapshot<'a>(&self) -> (&'a Control12, &'a Save12) {
        // SAFETY: As above. KVM does not write to the snapshot before L2 runs.
        unsafe {
            let nested = &raw const (*self.raw()).nested;
            (
                &*(&raw const (*nested).ctl).cast(),
                &*(&raw const (*nested).save).cast(),
            )
        }
    }

    /// Returns the VMCB of L1.
    #[inline]
    pub(crate) fn vmcb01(&mut self) -> &mut Vmcb01 {
        // SAFETY: By the type invariants it is there; the type has the same layout as the C one.
        unsafe { &mut *self.fields().vmcb01.ptr.cast() }
    }

    /// Returns the VMCB that the vCPU runs with now: vmcb01 or vmcb02.
    #[inline]
    pub(crate) fn current_vmcb(&mut self) -> &mut Vmcb {
        // SAFETY: By the type invariants it is there; the type has the same layout as the C one.
        unsafe { &mut *self.fields().vmcb.cast() }
    }

    /// Returns the MSR permission maps of L2 and of L1.
    pub(crate) fn msr_maps(&mut self) -> (&mut MsrMap, &MsrMap) {
        let svm = self.fields();

        // SAFETY: By the type invariants both are there, each 8 KiB at the address of a page.
        unsafe {
            (
                &mut *svm.nested.msrpm.cast(),
                &*svm.msrpm.cast_const().cast(),
            )
        }
    }

    /// Returns whether the MSR permission map of L2 is out of date, whatever L1 says.
    #[inline]
    pub(crate) fn recalculates_msr_map(&self) -> bool {
        // SAFETY: By the type invariants the vCPU is valid.
        unsafe { (*self.raw()).nested.force_msr_bitmap_recalc }
    }

    /// Makes the vCPU run with vmcb01, and with the ASID that it had then.
    pub(crate) fn switch_to_vmcb01(&mut self) {
        let vmcb01 = &raw mut self.fields().vmcb01;

        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_svm_switch_vmcb(self.raw(), vmcb01) }
        self.fields().asid = self.vmcb01().0.control.asid;
    }

    /// Returns whether the vCPU runs with vmcb02.
    #[inline]
    pub(crate) fn runs_vmcb02(&mut self) -> bool {
        let svm = self.fields();

        core::ptr::eq(svm.current_vmcb, &svm.nested.vmcb02)
    }

    /// Returns what the module keeps.
    #[inline]
    fn private(&mut self) -> *mut Private {
        self.fields().nested.provider_data.cast()
    }

    /// Returns the address spaces of L2.
    #[inline]
    pub(crate) fn address_spaces(&mut self) -> &mut AddressSpaces {
        let private = self.private();

        // SAFETY: By the type invariants it is there; nothing else refers to this part.
        unsafe { &mut (*private).address_spaces }
    }

    /// Returns the root of the tables that L2 runs on.
    pub(crate) fn loaded_root(&mut self) -> &mut LoadedRoot {
        let private = self.private();

        // SAFETY: As above.
        unsafe { &mut (*private).root }
    }

    /// Gives access to a page of L1's memory that is used often. Until it is dropped nothing may
    /// sleep.
    ///
    /// # Safety
    ///
    /// The page must be dropped before the op returns, and before another one is mapped.
    #[inline]
    pub(crate) unsafe fn map_page<'a>(&mut self, gpa: Gpa) -> Result<MappedPage<'a>, Inaccessible> {
        let private = self.private();

        // SAFETY: By the type invariants it is there, as is the vCPU; by the requirements of this
        // function nothing else refers to this part, which is no part of `self`.
        unsafe { (*private).pages.map(Vcpu::from_raw(self.as_ptr()), gpa) }
    }

    /// Makes the vCPU run with vmcb02.
    pub(crate) fn switch_to_vmcb02(&mut self) {
        let vmcb02 = &raw mut self.fields().nested.vmcb02;

        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_svm_switch_vmcb(self.raw(), vmcb02) }
    }

    /// Advances RIP beyond VMRUN; returns 0 if user space has to be asked.
    ///
    /// Other than by what skips other instructions, no trap of a single step comes after it.
    pub(crate) fn skip_vmrun(&mut self) -> core::ffi::c_int {
        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_svm_skip_instruction(self.as_ptr()) }
    }

    /// Sets the global-interrupt flag.
    pub(crate) fn set_gif(&mut self, gif: Gif) {
        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_svm_set_gif(self.raw(), gif == Gif::Set) }
    }

    /// Returns the global-interrupt flag.
    pub(crate) fn gif(&mut self) -> Gif {
        // SAFETY: By the type invariants.
        if unsafe { bindings::nested_helper_svm_gif(self.raw()) } {
            Gif::Set
        } else {
            Gif::Clear
        }
    }

    /// Sets EFER, CR0 and CR4 in the current VMCB and for KVM.
    pub(crate) fn set_control_registers(&mut self, efer: u64, cr0: u64, cr4: u64) {
        let vcpu = self.as_ptr();

        // SAFETY: By the type invariants; the values have passed the checks of `VMRUN`, or are
        // those from before.
        unsafe {
            bindings::nested_helper_svm_set_efer(vcpu, efer);
            bindings::nested_helper_svm_set_cr0(vcpu, cr0 as usize);
            bindings::nested_helper_svm_set_cr4(vcpu, cr4 as usize);
        }
    }

    /// Enables the virtualization of last-branch records where the current guest uses it.
    pub(crate) fn update_last_branch(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_svm_update_lbrv(self.as_ptr()) }
    }

    /// Makes performance counters that count one of the guests only follow the change.
    pub(crate) fn switch_performance_counters(&mut self, when: When) {
        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_svm_pmu_transition(self.raw(), when == When::Later) }
    }

    /// Returns the address of the MSR permission map of L2 for the processor.
    pub(crate) fn msr_map_address(&mut self) -> u64 {
        let map = self.fields().nested.msrpm;

        // SAFETY: By the type invariants the map is there.
        unsafe { bindings::nested_helper_svm_physical_address(map) }
    }

    /// Returns whether L2, whose controls are `control12`, has a page-attribute table of its own.
    pub(crate) fn pat(&self, control12: &Control12) -> Pat {
        let quirk = u64::from(bindings::KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT);

        if control12.nested_paging() && !self.has_quirk(quirk) {
            Pat::Separate
        } else {
            Pat::Shared
        }
    }
}

impl SvmVcpu {
    /// Returns the statistics of the VM.
    pub(crate) fn stats(&self) -> &VmStats<ExitCode> {
        // SAFETY: The provider's ops have `vm_init()` of these.
        unsafe { self.vm_stats() }
    }

    /// Traces and counts that the consistency check `name` has refused an entry of L2.
    pub(crate) fn trace_failed_check(&self, name: &'static CStr) {
        self.stats().count_failed_check(name);
        Vcpu::trace_failed_check(self, name);
    }
}

impl Deref for SvmVcpu {
    type Target = Vcpu;

    #[inline]
    fn deref(&self) -> &Vcpu {
        // SAFETY: By the type invariants, which include those of `Vcpu`; it is the first member,
        // and the reference is as old as that to `self`.
        unsafe { Vcpu::from_raw(self.raw().cast()) }
    }
}

/// The global-interrupt flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gif {
    /// Interrupts can be taken.
    Set,
    /// No interrupt, NMI or SMI can be taken.
    Clear,
}

/// When something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// At once.
    Now,
    /// Before the vCPU enters its guest.
    Later,
}

/// L1's virtual processor. It has access to none of the parts of the nested state.
#[repr(transparent)]
pub(crate) struct GuestCpu(Vcpu);

impl GuestCpu {
    /// Returns the virtual processor of a vCPU whose nested state is used meanwhile.
    ///
    /// # Safety
    ///
    /// The reference must not outlive the op that `svm` was passed to.
    pub(crate) unsafe fn of<'a>(svm: &SvmVcpu) -> &'a Self {
        // SAFETY: By the requirements of this function; the type is transparent.
        unsafe { &*svm.as_ptr().cast() }
    }

    fn new(vcpu: &Vcpu) -> &Self {
        // SAFETY: The type is transparent.
        unsafe { &*core::ptr::from_ref(vcpu).cast() }
    }
}

impl VirtualCpu for GuestCpu {
    #[inline]
    fn has(&self, feature: Feature) -> bool {
        let vcpu = self.0.as_ptr();

        // SAFETY: By the invariants of `Vcpu`; each reads the capabilities of the vCPU.
        unsafe {
            match feature {
                Feature::Eraps => bindings::nested_helper_svm_guest_has_eraps(vcpu),
                Feature::Gmet => bindings::nested_helper_svm_guest_has_gmet(vcpu),
                Feature::Invpcid => bindings::nested_helper_svm_guest_has_invpcid(vcpu),
                Feature::Lbrv => bindings::nested_helper_svm_guest_has_lbrv(vcpu),
                Feature::Npt => bindings::nested_helper_svm_guest_has_npt(vcpu),
                Feature::Nrips => bindings::nested_helper_svm_guest_has_nrips(vcpu),
                Feature::PauseFilter => bindings::nested_helper_svm_guest_has_pause_filter(vcpu),
                Feature::PauseFilterThreshold => {
                    bindings::nested_helper_svm_guest_has_pause_filter_threshold(vcpu)
                }
                Feature::Rdpru => bindings::nested_helper_svm_guest_has_rdpru(vcpu),
                Feature::Rdtscp => bindings::nested_helper_svm_guest_has_rdtscp(vcpu),
                Feature::SevEs => bindings::nested_helper_svm_guest_has_sev_es(vcpu),
                Feature::ShadowStack => bindings::nested_helper_svm_guest_has_shadow_stack(vcpu),
                Feature::Skinit => bindings::nested_helper_svm_guest_has_skinit(vcpu),
                Feature::TscRatio => bindings::nested_helper_svm_guest_has_tsc_ratio(vcpu),
                Feature::Vgif => bindings::nested_helper_svm_guest_has_vgif(vcpu),
                Feature::VmloadVmsave => bindings::nested_helper_svm_guest_has_vmload_vmsave(vcpu),
                Feature::Vnmi => bindings::nested_helper_svm_guest_has_vnmi(vcpu),
                Feature::Xsave => bindings::nested_helper_svm_guest_has_xsave(vcpu),
            }
        }
    }

    #[inline]
    fn is_legal(&self, gpa: Gpa) -> bool {
        self.0.is_legal_gpa(gpa)
    }

    #[inline]
    fn is_legal_cr3(&self, cr3: u64) -> bool {
        self.0.is_legal_cr3(cr3 as usize)
    }

    #[inline]
    fn is_legal_cr4(&self, cr4: u64) -> bool {
        self.0.is_legal_cr4(cr4 as usize)
    }

    #[inline]
    fn is_legal_efer(&self, efer: u64) -> bool {
        self.0.is_legal_efer(efer)
    }

    #[inline]
    fn uses_hyperv(&self) -> bool {
        self.0.uses_hyperv()
    }
}

/// Returns what the host does whatever the guest is.
pub(crate) fn host() -> Host {
    // SAFETY: Both read parameters of kvm-amd, which is loaded.
    unsafe {
        Host {
            intercepts_smi: bindings::nested_helper_svm_intercept_smi(),
            virtual_nmi: bindings::nested_helper_svm_vnmi(),
        }
    }
}

/// Checks that a member is at the same place in both types.
macro_rules! same_layout {
    ($ours:ty, $theirs:ty: $($field:ident $(= $other:ident)?),* $(,)?) => {
        const _: () = {
            assert!(size_of::<$ours>() == size_of::<$theirs>());
            assert!(align_of::<$ours>() <= 8);
            $( assert!(offset_of!($ours, $field) == same_layout!(@ $theirs, $field $($other)?)); )*
        };
    };
    (@ $theirs:ty, $field:ident) => { offset_of!($theirs, $field) };
    (@ $theirs:ty, $field:ident $other:ident) => { offset_of!($theirs, $other) };
}

same_layout! {
    Control12, bindings::vmcb_ctrl_area_cached:
    intercepts, pause_filter_thresh, pause_filter_count, iopm_base_pa, msrpm_base_pa, tsc_offset,
    asid, tlb_ctl, erap_ctl, int_ctl, int_vector, int_state, exit_code, exit_info_1, exit_info_2,
    exit_int_info, exit_int_info_err, misc_ctl, event_inj, event_inj_err, next_rip, nested_cr3,
    misc_ctl2, clean, enlightenments = __bindgen_anon_1,
}

same_layout! {
    Save12, bindings::vmcb_save_area_cached:
    es, cs, ss, ds, gdtr, idtr, cpl, efer, cr4, cr3, cr0, dr7, dr6, rflags, rip, rsp, s_cet, ssp,
    isst_addr, rax, cr2, g_pat, dbgctl, br_from, br_to, last_excp_from, last_excp_to,
}

same_layout! {
    nested::svm::vmcb::ControlArea, bindings::vmcb_control_area:
    intercepts, pause_filter_thresh, pause_filter_count, iopm_base_pa, msrpm_base_pa, tsc_offset,
    asid, tlb_ctl, erap_ctl, int_ctl, int_vector, int_state, exit_code, exit_info_1, exit_info_2,
    exit_int_info, exit_int_info_err, misc_ctl, avic_vapic_bar, ghcb_gpa, event_inj, event_inj_err,
    nested_cr3, misc_ctl2, clean, next_rip, insn_len, insn_bytes, avic_backing_page,
    avic_logical_id, avic_physical_id, vmsa_pa, bus_lock_counter, allowed_sev_features,
    guest_sev_features, enlightenments = __bindgen_anon_1,
}

same_layout! {
    nested::svm::vmcb::SaveArea, bindings::vmcb_save_area:
    es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr, vmpl, cpl, efer, cr4, cr3, cr0, dr7, dr6, rflags,
    rip, rsp, s_cet, ssp, isst_addr, rax, star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs,
    sysenter_esp, sysenter_eip, cr2, g_pat, dbgctl, br_from, br_to, last_excp_from, last_excp_to,
    spec_ctrl,
}

// The C type goes on to the end of the page.
const _: () = {
    assert!(offset_of!(Vmcb, control) == offset_of!(bindings::vmcb, control));
    assert!(offset_of!(Vmcb, save) == offset_of!(bindings::vmcb, __bindgen_anon_1));
    assert!(size_of::<Vmcb>() <= size_of::<bindings::vmcb>());
};
