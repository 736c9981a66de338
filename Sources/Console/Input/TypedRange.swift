// The pages of a typed range, as wire and unwire take it.

import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import Workloads

extension Shell {
  /// Pages that a range touches, as it was typed.
  struct Touched {
    let word: Word
    let first: VirtualAddress
    let count: PageCount
    var end: UInt64 { first.rawValue + count.bytes.rawValue }
  }

  func touched(_ word: Word, _ arguments: Arguments) throws(CommandError) -> Touched {
    let filled = try filledRange(word, arguments)
    let (start, length): (UInt64, ByteCount)
    if let filled {
      (start, length) = filled
    } else {
      (start, length) = try arguments.range(word, length: nil)
    }
    let first = VirtualAddress(start).page
    let last = start + (length.rawValue - 1)
    let count = PageCount((last - first.rawValue) >> Page.shift + 1)
    guard count.rawValue < 1 << 40, last <= UInt64.max - Page.size else {
      throw refuse(word, "no range of addresses is so long")
    }
    return Touched(word: word, first: first, count: count)
  }

  /// The range of `dirty` or `dirty+SIZE`: the pages that `dirty` filled last, or the first of them; nil for any other
  /// word.
  private func filledRange(
    _ word: Word, _ arguments: Arguments
  ) throws(CommandError) -> (start: UInt64, length: ByteCount)? {
    let name: StaticString = "dirty"
    let end = name.utf8CodeUnitCount
    guard word.bytes.count >= end, Bytes(rebasing: word.bytes[0..<end]) == name,
      word.bytes.count == end || word.bytes[end] == UInt8(ascii: "+")
    else { return nil }
    guard fills.count > 0 else { throw refuse(word, "dirty has filled no pages; type: dirty 1M") }
    let fill = fills[fills.count - 1]
    guard word.bytes.count > end else { return (fill.address.rawValue, fill.filled.bytes) }
    let size = arguments.part(of: word, from: end + 1)
    let length = try arguments.size(size)
    guard length > .zero else { throw refuse(size, "a range of no bytes") }
    guard length <= fill.filled.bytes else { throw refuse(size, "dirty has filled \(fill.filled.bytes)") }
    return (fill.address.rawValue, length)
  }

  /// Pages that a pageable range holds, and the first address that none does.
  func covered(_ touched: Touched, of ranges: RangeGeneration) -> (PageCount, VirtualAddress?) {
    var covered = PageCount.zero
    var hole: VirtualAddress?
    let end = forEachPart(of: touched, in: ranges) { range, at, pages in
      if at.gap > 0 && hole == nil { hole = VirtualAddress(at.first - at.gap) }
      covered = covered + pages
    }
    if end < touched.end && hole == nil { hole = VirtualAddress(end) }
    return (covered, hole)
  }

  func firstNotWired(_ touched: Touched, of ranges: RangeGeneration) -> VirtualAddress? {
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

  func reportWires(
    _ kind: StaticString, _ done: StaticString, _ touched: Touched, _ pages: PageCount
  ) {
    let wired = memory.paging.wiredCount
    report(kind) { report in
      report.write(
        "\(done) \(key: "pages", count: pages.rawValue, "page"), \(key: "bytes", size: pages.bytes), from \(key: "address", touched.first) on."
      )
      report.write(
        "Pageable pages wired now, each counted once: \(key: "wired_pages", count: wired.rawValue). Type: queues"
      )
    }
  }
}
