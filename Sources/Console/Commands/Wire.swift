// wire, unwire: pages that must stay where they are.

import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

extension Shell {
  private static var wireUsage: StaticString { "wire ADDRESS+SIZE [holes]" }
  private static var unwireUsage: StaticString { "unwire ADDRESS+SIZE" }

  /// Pages that a range touches, as it was typed.
  private struct Touched {
    let word: Word
    let first: VirtualAddress
    let count: PageCount
    var end: UInt64 { first.rawValue + count.bytes.rawValue }
  }

  func wire(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "A range is missing; usage: \(Self.wireUsage). objects N shows the ranges of an object.",
        Self.wireUsage)
    }
    let touched = try touched(word, arguments)
    var holes = HolePolicy.forbidden
    if let word = arguments.next() {
      guard word.bytes == "holes" else {
        throw refuse(word, "not understood here; usage: \(Self.wireUsage)")
      }
      holes = .allowed
    }
    try arguments.end(Self.wireUsage)
    let (covered, hole) = covered(touched, of: memory.paging.ranges)
    if covered == .zero { throw refuse(word, "no pageable memory is there; objects N shows where it is") }
    if let hole, holes == .forbidden {
      throw refuse(word, "no pageable memory is at \(hole); holes passes over that")
    }
    do throws(PagingError) {
      try memory.paging.wire(touched.first, touched.count, holes: holes)
    } catch {
      switch error {
      case .noMemory:
        throw fail("No frame is free for one of its pages. Nothing is wired.")
      case .inputOutput, .corrupt:
        throw fail("A page could not be brought in: \(error.description). Nothing is wired.")
      case .tooManyWires:
        throw fail("A page of the range is wired 4,095 times already. Nothing is wired.")
      case .noAddressSpace, .badConstraint, .notPageable, .protection, .tooManyHolds:
        throw fail("Paging refuses it: \(error.description). Nothing is wired.")
      }
    }
    report("wire", "Wired", touched, covered)
  }

  func unwire(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "A range is missing; usage: \(Self.unwireUsage). queues counts wired pages.", Self.unwireUsage)
    }
    let touched = try touched(word, arguments)
    try arguments.end(Self.unwireUsage)
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
    report("unwire", "Unwired", touched, covered)
  }

  private func touched(_ word: Word, _ arguments: Arguments) throws(CommandError) -> Touched {
    let (start, length) = try arguments.range(word, length: nil)
    let first = VirtualAddress(start).page
    let last = start + (length.rawValue - 1)
    let count = PageCount((last - first.rawValue) >> Page.shift + 1)
    guard count.rawValue < 1 << 40, last <= UInt64.max - Page.size else {
      throw refuse(word, "no range of addresses is so long")
    }
    return Touched(word: word, first: first, count: count)
  }

  /// Pages that a pageable range holds, and the first address that none does.
  private func covered(_ touched: Touched, of ranges: RangeGeneration) -> (PageCount, VirtualAddress?) {
    var covered = PageCount.zero
    var hole: VirtualAddress?
    let end = forEachPart(of: touched, in: ranges) { range, at, pages in
      if at.gap > 0 && hole == nil { hole = VirtualAddress(at.first - at.gap) }
      covered = covered + pages
    }
    if end < touched.end && hole == nil { hole = VirtualAddress(end) }
    return (covered, hole)
  }

  private func firstNotWired(_ touched: Touched, of ranges: RangeGeneration) -> VirtualAddress? {
    var found: VirtualAddress?
    _ = forEachPart(of: touched, in: ranges) { _, at, pages in
      for i in 0..<pages.rawValue where found == nil {
        let page = VirtualAddress(at.first) + PageCount(i)
        if (memory.pageTables.mapping(at: page)?.wires ?? 0) == 0 { found = page }
      }
    }
    return found
  }

  /// Calls `body` with each part of `touched` that one of `ranges` holds: the range, where the part begins
  /// and how far behind the last one, its pages. Answers where the last one ends.
  private func forEachPart(
    of touched: Touched, in ranges: RangeGeneration,
    _ body: (PageableRange, (first: UInt64, gap: UInt64), PageCount) -> Void
  ) -> UInt64 {
    var at = touched.first.rawValue
    while at < touched.end, let range = memory.paging.range(endingFrom: VirtualAddress(at), of: ranges),
      range.address.rawValue < touched.end
    {
      let from = max(at, range.address.rawValue)
      let to = min(touched.end, range.address.rawValue + range.count.bytes.rawValue)
      body(range, (from, from - at), PageCount((to - from) >> Page.shift))
      at = to
    }
    return at
  }

  private func report(
    _ kind: StaticString, _ done: StaticString, _ touched: Touched, _ pages: PageCount
  ) {
    let wired = memory.paging.wiredCount
    if isJSON {
      row(kind) { row in
        row.field("address", touched.first)
        row.field("pages", pages.rawValue)
        row.field("bytes", pages.bytes.rawValue)
        row.field("wired_pages", wired.rawValue)
      }
      return
    }
    print("\(done) \(count: pages.rawValue, "page"), \(pages.bytes), from \(touched.first) on.")
    print("Pageable pages wired now, each counted once: \(count: wired.rawValue). Type: queues")
  }
}
