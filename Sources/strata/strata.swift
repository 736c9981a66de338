// The host tool: packs traces and replays them on a simulated machine.
//
// ArgumentParser prints a mistake of the command line on several lines, and does not notice when its help can't be
// written. So the tool prints both itself: each error is one line, with an exit status of sysexits(3).

import ArgumentParser
import Foundation
import Workloads

@main
struct Strata: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "strata",
    abstract:
      "Strata's memory subsystem on this host: replay a real kernel's allocations, fuzz pageable memory.",
    discussion: """
      Start here:
        strata trace pack build.ftrace.xz -o build.trace  pack a recorder's text
        strata trace show build.trace                     see what is in it
        strata replay build.trace                         replay it in this process
        make run TRACE=build.trace                        and in the kernel, in QEMU

      Results go to standard output, all else to standard error. A file that is no good ends with one line on what \
      and where, and a status of 64 to 78 as in sysexits(3).
      """,
    version: "strata 0.1 (packed traces of version \(PackedTrace.version))",
    subcommands: [
      Trace.self, ReplayCommand.self, BenchCommand.self, BenchWorker.self, FuzzCommand.self,
      SelfTestCommand.self, StudyCommand.self, PackFileCommand.self,
    ])

  static func main() {
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch {
      Foundation.exit(report(error))
    }
  }

  /// The words that name a command, and no others: `help` explains these.
  private static func commands(of words: some Sequence<String>) -> [String] {
    var (commands, current): ([String], any ParsableCommand.Type) = ([], Strata.self)
    for word in words {
      guard let next = current.configuration.subcommands.first(where: { $0._commandName == word }) else {
        break
      }
      commands.append(word)
      current = next
    }
    return commands
  }

  /// Prints what an error has to say, if anything is left to say. Answers the exit status.
  private static func report(_ error: any Error) -> Int32 {
    let status = exitCode(for: error)
    if error is ExitCode { return status.rawValue }
    guard status == .success else {
      let message = message(for: error).split(separator: "\n").joined(separator: " ")
      let help = (["strata", "help"] + commands(of: CommandLine.arguments.dropFirst())).joined(separator: " ")
      printToStandardError("strata: \(message) (\(help) says more)\n")
      return status.rawValue
    }
    do {
      try complaining { try printResult(fullMessage(for: error)) }
      return 0
    } catch {
      return exitCode(for: error).rawValue
    }
  }
}
