// `strata study`: experiments that repeat a claim of the README, each with its table.

import ArgumentParser

struct StudyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "study",
    abstract: "Repeat an experiment and print its table.",
    subcommands: [ContigStudy.self, ZsmallocStudy.self])
}
