//! `secmesh capture`: heads of dropped packets, as pcapng.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{CliError, Context, args::CaptureArgs, note, output::Out};
use crate::{
    api::types::{CaptureBatch, CaptureStarted, CapturedPacket, Done, Request},
    sense::capture::{PcapngWriter, Written},
};

/// How often the agent is asked for more.
const POLL: Duration = Duration::from_millis(100);

/// Captures until there are enough or the time is over.
pub fn capture(context: &Context, args: &CaptureArgs, out: &mut Out<'_>) -> Result<(), CliError> {
    let CaptureArgs {
        reasons,
        count,
        seconds,
        snap,
        file,
    } = args;
    let CaptureStarted { id } = context.ask(&Request::CaptureStart {
        reasons: reasons.clone(),
        snap: usize::from(*snap),
        seconds: *seconds,
    })?;
    let (written, lost) = if file == Path::new("-") {
        follow(context, args, id, out.raw())
    } else {
        match File::create(file) {
            Ok(created) => follow(context, args, id, &mut BufWriter::new(created)),
            Err(error) => Err(CliError::Failed(format!(
                "cannot write {}: {error}",
                file.display()
            ))),
        }
    }
    .inspect_err(|_| {
        // It would end by itself; that it ends now is a courtesy to the next one.
        let _: Result<Done, _> = context.ask(&Request::CaptureStop { id });
    })?;
    let losses = if lost == 0 {
        String::new()
    } else {
        format!(", {lost} more came too fast")
    };
    note(&format!(
        "{written} of at most {count} packets captured{losses}"
    ));
    Ok(())
}

fn follow(
    context: &Context,
    args: &CaptureArgs,
    id: u64,
    to: &mut dyn Write,
) -> Result<(usize, u64), CliError> {
    let mut writer = PcapngWriter::new(to, u32::from(args.snap)).map_err(CliError::Output)?;
    let mut written = 0;
    loop {
        let batch: CaptureBatch = context.ask(&Request::CaptureNext { id })?;
        let before = written;
        for packet in batch
            .packets
            .iter()
            .take(args.count.saturating_sub(written))
        {
            write(&mut writer, packet).map_err(CliError::Output)?;
            written = written.saturating_add(1);
        }
        writer.flush().map_err(CliError::Output)?;
        if written > before {
            note(&format!("{written} packets"));
        }
        if written >= args.count {
            let _: Done = context.ask(&Request::CaptureStop { id })?;
            return Ok((written, batch.lost));
        }
        if batch.over {
            return Ok((written, batch.lost));
        }
        thread::sleep(POLL);
    }
}

fn write(writer: &mut PcapngWriter<&mut dyn Write>, packet: &CapturedPacket) -> io::Result<()> {
    let data = BASE64_STANDARD
        .decode(&packet.data)
        .map_err(io::Error::other)?;
    let verb = if packet.dropped {
        "dropped"
    } else {
        "would be dropped"
    };
    writer.packet(&Written {
        unix_us: packet.unix_us,
        interface: &packet.interface,
        wire_len: packet.wire_len,
        data: &data,
        comment: &format!("secmesh: {verb}: {}", packet.reason),
    })
}
