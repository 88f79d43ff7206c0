//! Every program of the object, whether the agent attaches it or not: does this kernel accept it, and
//! after how many instructions?

use aya::{
    Ebpf,
    programs::{Program, ProgramError, ProgramInfo},
};

use super::{Dataplane, DataplaneError, LoadOptions, OBJECT};

/// What the kernel made of one program.
#[derive(Debug)]
pub struct ProgramReport {
    /// Its name in the object.
    pub name: String,
    /// Its type, as aya names it: `Xdp`, `SchedClassifier`, `TracePoint`, …
    pub kind: String,
    /// What the kernel tells of it, or why it refused it.
    pub outcome: Result<Accepted, ProgramError>,
}

/// What the kernel tells of a program that it accepted (`struct bpf_prog_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepted {
    /// Instructions that the verifier walked (Linux 5.16); `None` where it does not tell.
    pub verified: Option<u32>,
    /// Bytes of the program as the verifier left it; `None` where the kernel keeps them to itself.
    pub translated_bytes: Option<u32>,
    /// Bytes of machine code; 0 without a compiler in the kernel.
    pub jited_bytes: u32,
}

impl From<ProgramInfo> for Accepted {
    fn from(info: ProgramInfo) -> Self {
        Self {
            verified: info.verified_instruction_count(),
            translated_bytes: info.size_translated(),
            jited_bytes: info.size_jitted(),
        }
    }
}

impl Dataplane {
    /// Loads whatever of the object is not loaded yet, each program by its type, and says what the
    /// kernel made of each, in the order of their names.
    ///
    /// Nothing is attached. A program whose type cannot be loaded without more knowledge than the object
    /// holds, and that [`Dataplane::load`] did not load, is an error of its own and not left out.
    pub fn programs(&mut self) -> Vec<ProgramReport> {
        every_program(&mut self.ebpf)
    }
}

/// As [`Dataplane::programs`], where [`Dataplane::load`] failed and so cannot tell of which program.
///
/// # Errors
///
/// When the object or its maps cannot be loaded.
pub fn try_programs(options: &LoadOptions) -> Result<Vec<ProgramReport>, DataplaneError> {
    let globals = super::Globals::of(options);
    let mut ebpf = Dataplane::loader(options, &globals)
        .load(OBJECT)
        .map_err(DataplaneError::Load)?;
    Ok(every_program(&mut ebpf))
}

fn every_program(ebpf: &mut Ebpf) -> Vec<ProgramReport> {
    let mut reports: Vec<ProgramReport> = ebpf
        .programs_mut()
        .map(|(name, program)| ProgramReport {
            name: name.to_owned(),
            kind: format!("{:?}", program.prog_type()),
            outcome: load(program)
                .and_then(|()| program.info())
                .map(Accepted::from),
        })
        .collect();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    reports
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    if program.fd().is_ok() {
        return Ok(());
    }
    match program {
        Program::Xdp(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        Program::TracePoint(p) => p.load(),
        Program::RawTracePoint(p) => p.load(),
        Program::KProbe(p) => p.load(),
        Program::SocketFilter(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::PerfEvent(p) => p.load(),
        Program::CgroupSkb(p) => p.load(),
        // Others want to be told what they attach to.
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
