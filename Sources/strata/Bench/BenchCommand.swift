// `strata bench`: the budgets that concern this host, measured; or all of them, from rows that were measured before.

import ArgumentParser
import Foundation
import Workloads

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Measure Strata's allocators on this host, against the budgets.",
    discussion: """
      Objects: the same patterns and seeds through kmem and, in processes of their own, through the malloc of \
      mimalloc, jemalloc, tcmalloc (preloaded) and glibc, in turns; Scripts/install-tools bench installs the first \
      three. A time is processor time, the least over the turns. Threads: two against one. Frames: searches, in steps, and churn, \
      which depend on a seed only. It takes a minute or two. Another load on the host's processors shows in the \
      times: run nothing else on two of them.

      A goal that is missed fails only where the row is due. Build with optimisation: swift run -c release strata \
      bench. make bench prints these rows together with those of the kernel.

      --kernel runs the benches of the kernel's console instead, the same code, on a simulated machine of 1 GiB with \
      3 GiB of swap: counts of runs and pages are compared with their goals, cycles of this host are not.

      Exit status: 0; 70 when a goal was missed that is due.
      """)

  @Flag(name: [.customShort("j"), .long], help: "Print a row of JSON a figure instead of a table.")
  var json = false

  @Option(help: ArgumentHelp("The packed trace whose objects are allocated.", valueName: "file"))
  var trace = "Traces/linux-6.1-sample.trace"

  @Option(help: ArgumentHelp("The pages that the compressed store is measured with.", valueName: "file"))
  var pages = "Pages/anonymous-4096-pages.bin.xz"

  @Option(
    help: ArgumentHelp(
      "Measure nothing: show every row of the budgets, with the figures of these rows of JSON.",
      valueName: "file"))
  var from: String?

  @Flag(help: "Measure the kernel's rows, on a simulated machine.")
  var kernel = false

  @Option(help: "Measure only rows whose names begin so; with --kernel, only benches.")
  var only = ""

  @Flag(name: .shortAndLong, help: "Print the time of each allocator on standard error.")
  var verbose = false

  func validate() throws {
    guard from == nil else {
      if kernel { throw ValidationError("--from measures nothing: leave out --kernel") }
      return
    }
    if kernel {
      if SimulatedBench.benches(only).isEmpty {
        throw ValidationError("no bench of the kernel has a name that begins with \"\(only)\"")
      }
      return
    }
    guard !HostBench.hasRow(only) else { return }
    throw ValidationError("no row that this host measures has a name that begins with \"\(only)\"")
  }

  func run() throws {
    try complaining {
      let traceName = URL(fileURLWithPath: trace).lastPathComponent
      var figures: [BenchFigure]
      var leftOut: [(name: String, why: String)] = []
      if let from {
        let rows = try BenchRows(
          text: String(decoding: contents(of: from, limit: 1 << 26), as: UTF8.self), name: from)
        (figures, leftOut) = (rows.all, rows.leftOut)
      } else if kernel {
        Terminal.standard.beginProgress()
        let bench = SimulatedBench()
        try bench.run(SimulatedBench.benches(only), trace: trace)
        (figures, leftOut) = (bench.figures, bench.leftOut)
        Terminal.standard.clearProgress()
      } else {
        Terminal.standard.beginProgress()
        let bench = HostBench(trace: trace, pages: pages, only: only, verbose: verbose)
        figures = try bench.figures()
        leftOut = bench.leftOut
        Terminal.standard.clearProgress()
      }
      try show(figures, leftOut, traceName)
      let failed = figures.filter(\.fails)
      if let first = failed.first {
        throw Complaint("\(first.name) is due: \(first.verdict.description.lowercased())", .software)
      }
    }
  }

  private func show(
    _ figures: [BenchFigure], _ leftOut: [(name: String, why: String)], _ traceName: String
  ) throws {
    guard !json else {
      for figure in figures { try printResult(figure.json(trace: traceName)) }
      for row in leftOut {
        try printResult(#"{"kind":"left_out","name":"\#(row.name)","why":\#(JSONRow.quoted(row.why))}"#)
      }
      return
    }
    if !figures.isEmpty { try printResult(BenchFigure.table(figures)) }
    if figures.contains(where: \.budget.dependsOnTrace) { try printResult("* with the trace \(traceName)") }
    for row in leftOut { try printResult("\(row.name) is left out: \(row.why).") }
    if !figures.isEmpty { try printResult(BenchFigure.summary(figures)) }
  }
}
