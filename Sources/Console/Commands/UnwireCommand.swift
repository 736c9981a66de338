// unwire: undoes one wire of each page of a range.

import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

extension CommandDescription {
  static var unwire: CommandDescription {
    CommandDescription(
      name: "unwire", usage: "unwire ADDRESS+SIZE",
      about: """
        Undoes one wire of each page of a range, as wire takes it. Parts that
        are not pageable are passed over; a page that is not wired refuses the
        whole.
        """,
      example: "unwire dirty+64K", after: "wire dirty+64K", question: .trial)
  }
}

extension Shell {
  func unwire(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "A range is missing; usage: \(arguments.usage). queues counts wired pages.")
    }
    let touched = try touched(word, arguments)
    try arguments.end()
    // A range that is mapped from here on holds no page that the check below has seen.
    let ranges = memory.paging.ranges
    let (covered, _) = covered(touched, of: ranges)
    if covered == .zero { throw refuse(word, "no pageable memory is there; objects N shows where it is") }
    // Paging reports this as a bug of its caller. Another thread that unwires a page after this check still meets the
    // report.
    if let loose = firstNotWired(touched, of: ranges) {
      throw refuse(word, "\(loose) is not wired; nothing was changed")
    }
    memory.paging.unwire(touched.first, touched.count, of: ranges)
    printEnd { reportWires("unwire", "Unwired", touched, covered) }
  }
}
