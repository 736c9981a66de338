// verify: checks the stamp of every page that dirty made.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var verify: CommandDescription {
    CommandDescription(
      name: "verify", usage: "verify",
      about: """
        Touches every page that dirty made, wherever it is by now, and checks
        its stamp.
        """,
      example: "verify", after: "dirty 1M", question: .trial,
      arguments: .none)
  }
}

extension Shell {
  func verify() throws(CommandError) {
    guard fills.count > 0 else { throw refuse("There are no pages to verify. Type: dirty 60%") }
    var sum = DirtyPages.Verdict()
    let before = memory.paging.figures
    let start = cp_cycles()
    for i in 0..<fills.count where !hasStopped {
      let fill = fills[i]
      sum.add(fill.verify(access) { pace("verify", $0, of: fill.filled.rawValue, "pages") })
    }
    let taken = cp_cycles() &- start
    let read = memory.paging.figures.pageIns - before.pageIns
    if isStopped(
      "Stopped. \(count: sum.examined) of \(count: fills.pages.rawValue, "page") were verified.")
    {
      printDone { report(sum, read, taken) }
    } else {
      report(sum, read, taken)
    }
    try complain(sum)
  }

  private func report(_ sum: DirtyPages.Verdict, _ read: UInt64, _ taken: UInt64) {
    report("verify") { report in
      report.keep("\(key: "pages", only: sum.examined)")
      report.write(
        "\(key: "intact", count: sum.intact, "page") intact; \(key: "read", count: read) were read back from swap."
      )
      report.keep("\(key: "wrong", only: sum.wrong)\(key: "unreadable", only: sum.unreadable)")
      report.keep("\(key: "first", only: .address(sum.first))")
      report.keep(cost: taken)
    }
  }

  /// Throws when a page has lost its stamp.
  private func complain(_ verdict: DirtyPages.Verdict) throws(CommandError) {
    guard let first = verdict.first else { return }
    var line = Line("! ")
    if verdict.wrong > 0 {
      let holds: StaticString = verdict.wrong == 1 ? "holds" : "hold"
      line.append(line: "\(count: verdict.wrong, "page") \(holds) something else")
    }
    if verdict.wrong > 0 && verdict.unreadable > 0 { line.append(", ") }
    if verdict.unreadable > 0 { line.append(line: "\(count: verdict.unreadable) can't be read") }
    line.append(line: ". Type: whatis \(first)")
    print(line)
    throw .failed
  }
}
