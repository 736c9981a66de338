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
    guard fillCount > 0 else { throw refuse("There are no pages to verify. Type: dirty 60%") }
    var sum = DirtyPages.Verdict()
    let before = memory.paging.figures
    let start = cp_cycles()
    for i in 0..<fillCount where !hasStopped { verify(fillList[i], &sum) }
    let taken = cp_cycles() &- start
    let read = memory.paging.figures.pageIns - before.pageIns
    var pages: UInt64 = 0
    for i in 0..<fillCount { pages += fillList[i].filled.rawValue }
    let verified = sum.intact + sum.wrong + sum.unreadable
    if isStopped("Stopped. \(count: verified) of \(count: pages, "page") were verified.") {
      tellDone { report(sum, read, taken) }
    } else {
      report(sum, read, taken)
    }
    try complain(sum)
  }

  private func report(_ sum: DirtyPages.Verdict, _ read: UInt64, _ taken: UInt64) {
    row("verify") { row in
      row.field("pages", sum.intact + sum.wrong + sum.unreadable)
      row.field("intact", sum.intact)
      row.field("wrong", sum.wrong)
      row.field("unreadable", sum.unreadable)
      row.field("read", read)
      row.field("first", sum.first)
      row.cost(taken, costUnit)
    }
    print("\(count: sum.intact, "page") intact; \(count: read) were read back from swap.")
  }

  /// Adds the verdict on a fill to `sum`, with a progress bar.
  func verify(_ fill: DirtyPages, _ sum: inout DirtyPages.Verdict) {
    var bar = Bar(self)
    let verdict = fill.verify(access) {
      bar.goesOn("verify", $0, of: fill.filled.rawValue, "pages") ? .goOn : .stop
    }
    bar.end()
    sum.intact += verdict.intact
    sum.wrong += verdict.wrong
    sum.unreadable += verdict.unreadable
    if sum.first == nil { sum.first = verdict.first }
  }

  /// Throws when a page has lost its stamp.
  func complain(_ verdict: DirtyPages.Verdict) throws(CommandError) {
    guard let first = verdict.first else { return }
    if !isJSON {
      var line = Line("! ")
      if verdict.wrong > 0 {
        line.append(
          line:
            "\(count: verdict.wrong, "page") \(verdict.wrong == 1 ? "holds" : "hold" as StaticString) something else"
        )
      }
      if verdict.wrong > 0 && verdict.unreadable > 0 { line.append(", ") }
      if verdict.unreadable > 0 { line.append(line: "\(count: verdict.unreadable) can't be read") }
      line.append(line: ". Type: whatis \(first)")
      print(line)
    }
    throw .failed
  }
}
