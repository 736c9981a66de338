// zs: the compressed page store.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads
import Zsmalloc

extension CommandDescription {
  static var zs: CommandDescription {
    CommandDescription(
      name: "zs", usage: "zs [pack [module | RANGE] | compact | free]",
      about: """
        The compressed page store: size classes with their zspages by the share
        of slots in use, and totals as zram's mm_stat. pack stores the pages of
        the boot module or of a range of addresses, also dirty, and checks each;
        compact moves objects together; free gives back what pack has stored.
        """,
      example: "zs pack module", question: .use,
      completion: .words("pack compact free module dirty"))
  }
}

extension Shell {
  func zs(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else { return printStore() }
    if word.bytes == "pack" {
      try pack(arguments)
    } else if word.bytes == "compact" {
      try arguments.end()
      compactStore()
    } else if word.bytes == "free" {
      try arguments.end()
      freePacked()
    } else {
      throw arguments.notUnderstood(word)
    }
  }

  // MARK: The store

  private func printStore() {
    guard memory.compressed.figures.objects > 0 || isJSON else { return printTotals() }
    let table = table("zs_class", .asGiven)
    table.column("size", .figure)
    table.column("pages", .figure, key: "chain_pages")
    table.column("slots", .figure, key: "chain_slots")
    table.column("<=25%", .sum, key: "zspages_quarter")
    table.column("<=50%", .sum, key: "zspages_half")
    table.column("<=75%", .sum, key: "zspages_three_quarters")
    table.column("<100%", .sum, key: "zspages_almost_full")
    table.column("full", .sum, key: "zspages_full")
    table.column("objects", .sum)
    table.column("held", .sum, key: "bytes_held")
    table.column("in use", .ratio, key: "share_in_use")
    memory.compressed.store.forEachClass { one in
      table.begin()
      table.count(one.slotSize.rawValue)
      table.count(UInt64(one.chainPages))
      table.count(UInt64(one.slots))
      for group in 0..<5 { table.count(one.zspages[group]) }
      table.count(one.objects)
      table.size(one.frames.bytes)
      table.share(one.usedBytes.rawValue, of: one.frames.bytes.rawValue)
      table.end()
    }
    table.finish(total: "all")
    printTotals()
  }

  private func printTotals() {
    let figures = memory.compressed.figures
    report("zs") { report in
      report.write(
        "\(key: "pages", count: figures.pages.rawValue, "page") of \(key: "original_bytes", size: figures.pages.bytes): \(key: "compressed_bytes", size: figures.bytes) in \(key: "objects", count: figures.objects, "object"), \(key: "same_filled", count: figures.sameFilled.rawValue) same-filled, \(key: "huge", count: figures.huge.rawValue) with a page of their own."
      )
      report.write(
        "Held: \(key: "bytes_held", size: figures.frames.bytes), of which \(key: "bytes_of_tables", size: figures.tableFrames.bytes) are tables; \(share(figures.bytes, of: figures.frames.bytes)) of it in use. The most: \(key: "bytes_most", size: figures.peakFrames.bytes)."
      )
      report.keep(
        "\(key: "limit_bytes", only: figures.limit.bytes.rawValue)\(key: "pages_compacted", only: figures.compacted.rawValue)\(key: "huge_since_boot", only: figures.hugeEver)"
      )
      report.write(
        "Compaction has freed \(count: figures.compacted.rawValue) pages.", if: figures.compacted > .zero)
      report.write("Store something: zs pack module, zs pack dirty.", if: figures.objects == 0)
    }
  }

  private func share(_ bytes: ByteCount, of held: ByteCount) -> Line {
    var line = Line()
    line.append(share: bytes.rawValue, of: held.rawValue)
    return line
  }

  // MARK: pack and free

  private func pack(_ arguments: Arguments) throws(CommandError) {
    guard state.pointee.packed == nil else {
      throw fail("Pages are packed already. zs free gives them back.")
    }
    let word = arguments.next()
    if let word, !(word.bytes == "module") {
      let range = try touched(word, arguments)
      try arguments.end()
      return try pack(pagesOf: range)
    }
    try arguments.end()
    guard let module, let start = module.baseAddress else {
      _ = fail("There is no boot module. zs pack dirty packs the pages of dirty.")
      throw .unfit
    }
    try pack(ByteCount(UInt64(module.count)).pagesRoundedUp, from: VirtualAddress(start), "the boot module") {
      number, words in
      let at = Int(number) * Int(Page.size)
      let some = min(Int(Page.size), module.count - at)
      words.initialize(repeating: 0, count: Int(Page.size) / 8)
      UnsafeMutableRawPointer(words).copyMemory(from: start + at, byteCount: some)
    }
  }

  /// Packs the pages of a range of virtual or physical addresses.
  private func pack(pagesOf range: Touched) throws(CommandError) {
    let first = range.first
    let end = UInt64(memory.map.end.rawValue) << Page.shift
    guard first.rawValue < end else {
      return try pack(range.count, from: first, "the range") { (number, words) throws(PagingError) in
        try access.load(page: first + PageCount(number), into: words)
      }
    }
    guard range.end <= end else { throw refuse(range.word, "beyond the end of memory") }
    let directMap = memory.machine.directMap
    try pack(range.count, from: first, "the range") { (number, words) throws(PagingError) in
      let frame = FrameNumber(UInt32(truncatingIfNeeded: first.rawValue >> Page.shift + number))
      guard physical.whatIs(frame).role != .absent else { throw .notPageable }
      UnsafeMutableRawPointer(words).copyMemory(
        from: directMap.pointer(to: frame), byteCount: Int(Page.size))
    }
  }

  private func pack(
    _ count: PageCount, from first: VirtualAddress, _ what: StaticString,
    reading read: (UInt64, UnsafeMutablePointer<UInt64>) throws(PagingError) -> Void
  ) throws(CommandError) {
    let (before, start) = (memory.compressed.figures, cp_cycles())
    let packed: PackedPages
    do throws(PackFailure) {
      packed = try PackedPages.pack(count, on: memory, reading: read) {
        pace("zs pack", $0, of: count.rawValue, "pages")
      }
    } catch {
      throw describe(error, of: count, from: first)
    }
    state.pointee.packed = packed
    report(packed, what, before, cp_cycles() &- start)
  }

  private func describe(_ failure: PackFailure, of count: PageCount, from first: VirtualAddress)
    -> CommandError
  {
    switch failure {
    case .noMemory(let packed):
      return fail(
        "Memory is full after \(count: packed, "page") of \(count: count.rawValue); all are given back. Type: failures"
      )
    case .limitReached(let packed):
      return fail(
        "The store is at its limit after \(count: packed, "page") of \(count: count.rawValue); all are given back. Type: sysctl zs.limit"
      )
    case .unreadable(let number):
      return fail(
        "The page at \(first + PageCount(number)) can't be read: nothing is mapped there, or no memory.")
    case .differs(let number):
      return fail("The page at \(first + PageCount(number)) came back otherwise than it was stored.")
    }
  }

  private func report(
    _ packed: PackedPages, _ what: StaticString, _ before: CompressedFigures, _ cycles: UInt64
  ) {
    let figures = memory.compressed.figures
    let held = figures.frames.subtractingSaturated(before.frames)
    let wasStopped = isStopped("Stopped; the pages packed so far stay.")
    printDone {
      report("zs_pack") { report in
        report.write(
          "Packed \(key: "pages", count: packed.count, "page") of \(what), \(key: "bytes", size: PageCount(packed.count).bytes), and read each back: \(key: "same_filled", count: packed.sameFilled) same-filled, \(key: "incompressible", count: packed.incompressible) as they are."
        )
        report.write(
          "They are \(key: "compressed_bytes", size: packed.bytes) in \(key: "bytes_held", size: held.bytes) of memory: \(share(packed.bytes, of: held.bytes)) of it in use."
        )
        report.write("Type: zs, zs compact, zs free", if: !wasStopped)
        report.keep(cost: cycles)
      }
    }
  }

  private func freePacked() {
    let before = memory.compressed.figures
    let pages = state.pointee.packed?.count ?? 0
    state.pointee.packed?.release(memory)
    state.pointee.packed = nil
    let freed = before.frames.subtractingSaturated(memory.compressed.figures.frames)
    report("zs_freed") { report in
      report.write("Nothing is packed. As in: zs pack module", if: pages == 0)
      report.write(
        "Freed \(key: "pages", count: pages, "page"), and \(key: "bytes", size: freed.bytes) of memory.",
        if: pages > 0)
    }
  }

  private func compactStore() {
    let start = cp_cycles()
    let outcome = memory.compressed.store.compact()
    let cycles = cp_cycles() &- start
    let figures = memory.compressed.figures
    report("zs_compacted") { report in
      report.write(
        "Moved \(key: "objects", count: outcome.moved, "object") and freed \(key: "frames", count: outcome.freed.rawValue, "page"): \(key: "bytes_held", size: figures.frames.bytes) are held, \(share(figures.bytes, of: figures.frames.bytes)) of it in use."
      )
      report.write(
        "! Size classes that stayed as they are: \(key: "classes_left", count: UInt64(outcome.leftAlone)). A reader did not end, or no frame was free.",
        if: outcome.leftAlone > 0)
      report.keep(cost: cycles)
    }
  }
}

extension Shell {
  // MARK: whatis

  /// Prints what a byte of a zspage belongs to.
  func printZspage(_ address: PhysicalAddress) {
    guard let zspage = memory.compressed.store.whatIs(address) else {
      return answer("A page of a zspage that is being moved or freed.")
    }
    let size = zspage.slotSize
    if let cell = zspage.cell {
      answer(
        "\(ByteCount(UInt64(zspage.offset))) into slot \(UInt64(zspage.slot ?? 0)) of \(size), of the object with cell \(UInt64(cell))."
      )
    } else if let slot = zspage.slot {
      answer("\(ByteCount(UInt64(zspage.offset))) into slot \(UInt64(slot)) of \(size), which is free.")
    } else {
      answer("The end of a zspage, behind its last slot.")
    }
    row("zspage") { row in
      row.field("zspage", UInt64(zspage.number))
      row.field("slot_bytes", size.rawValue)
      row.field("chain_pages", UInt64(zspage.chainPages))
      row.field("chain_slots", UInt64(zspage.slots))
      row.field("used", UInt64(zspage.used))
      row.field("frames", UInt64(zspage.frames))
      row.field("page", UInt64(zspage.page))
      row.field("slot", zspage.slot.map { UInt64($0) })
      row.field("offset", UInt64(zspage.offset))
      row.field("cell", zspage.cell.map { UInt64($0) })
    }
    fact(
      "zspage",
      "\(UInt64(zspage.number)), page \(UInt64(zspage.page)) of 0 to \(UInt64(zspage.chainPages - 1))",
      "\(UInt64(zspage.used)) of \(UInt64(zspage.slots)) slots of \(size) in use, \(count: UInt64(zspage.frames), "frame")"
    )
  }
}
