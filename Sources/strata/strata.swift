// The host tool: packs traces and replays them on a simulated machine.

import ArgumentParser

@main
struct Strata: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "strata",
    abstract:
      "Strata's memory subsystem on this host: replay a real kernel's allocations, fuzz pageable memory.",
    discussion: """
      Start here:
        strata trace pack build.ftrace.xz -o build.trace   from ftrace's text to a packed trace
        strata replay build.trace                          against Strata, in this process
        make run TRACE=build.trace                         the same in the kernel, in QEMU

      A file that is no good ends with one line on what and where, and a status of 65 to 78 as in sysexits(3).
      """,
    subcommands: [
      Trace.self, ReplayCommand.self, BenchCommand.self, BenchWorker.self, FuzzCommand.self,
      StudyCommand.self,
    ])
}
