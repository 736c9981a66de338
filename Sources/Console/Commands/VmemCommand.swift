// vmem: the arenas that allocate addresses, and the segments of one.

import KernelSpace
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Vmem

extension CommandDescription {
  static var vmem: CommandDescription {
    CommandDescription(
      name: "vmem", usage: "vmem [ARENA] [-a]",
      about: """
        Arenas of addresses, each under the one that it imports from; of one
        arena, its segments.
        """,
      example: "vmem heap_va", question: .use,
      completion: .names(of: .arenas))
  }
}

extension Shell {
  /// Each arena, those of the kernel first; none below another.
  private func forEachArena(_ body: (Arena) -> Void) { memory.space.tags.forEachArena { body($0) } }

  func forEachArenaName(_ body: (ShortName) -> Void) { forEachArena { body($0.name) } }

  func vmem(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      try arguments.end()
      arenas()
      return
    }
    try arguments.end()
    var found: Arena?
    forEachArena { if $0.name.isSpelled(by: word.bytes) { found = $0 } }
    guard let found else { throw refuse("No arena \"\(word.line)\". vmem lists them.") }
    segments(of: found)
  }

  private func arenas() {
    let table = table("arena")
    table.column("arena", .text)
    table.column("size", .figure, key: "bytes")
    table.column("in use", .figure, key: "bytes_in_use")
    table.column("largest free", .figure, key: "bytes_largest_free")
    table.column("segments", .figure)
    table.column("requests", .figure)
    table.column("failed", .figure)
    forEachArena { arena in
      let figures = arena.figures
      table.begin()
      table.text(arena.hasSource && !isJSON ? "  \(arena.name)" : "\(arena.name)")
      table.size(ByteCount(arena.size(.total).rawValue))
      table.size(ByteCount(arena.size(.allocated).rawValue))
      table.size(ByteCount(arena.size(.largestFree).rawValue))
      table.count(figures.busySegments + figures.freeSegments)
      table.count(figures.allocations + figures.failed)
      table.count(figures.failed)
      table.end()
    }
    table.finish()
    let tags = memory.space.tags.figures
    report("tags") { report in
      report.write(
        "tags of 32 bytes: \(count: tags.total - tags.free) in use and \(key: "free", count: tags.free) spare make \(key: "total", count: tags.total), in \(key: "frames", count: tags.pages.rawValue, "frame")\(key: "hash_frames", only: tags.hashPages.rawValue)"
      )
    }
    print("An arena stands below the one that it imports from. vmem ARENA lists segments.")
  }

  private func segments(of arena: Arena) {
    let isAddresses = arena.contents == .addresses
    let table = table("segment")
    table.column("from", .exact)
    table.column("size", .figure, key: "bytes")
    table.column("what", .text)
    table.column("requested by", .text, key: "site")
    var (busy, free, spans) = (UInt64(0), UInt64(0), UInt64(0))
    arena.walk { segment in
      var what: Line
      switch segment.kind {
      case .addedSpan:
        spans += 1
        what = "span, permanent"
      case .importedSpan:
        spans += 1
        what = "span, imported"
      case .free:
        free += 1
        what = "  free"
      case .busy:
        busy += 1
        what = "  in use"
        let start = VirtualAddress(segment.first.rawValue)
        let range =
          isAddresses ? memory.pageTables.range(at: start) ?? memory.pageTables.range(at: start + .one) : nil
        if let kind = range.flatMap({ RangeKind(rawValue: $0.tag.rawValue) }) {
          what = "  \(kind.description)"
        } else if isAddresses && memory.pageTables.isPrepared(start) {
          what = "  \(RangeKind.pageable.description)"
        }
      }
      table.begin()
      table.text("\(VirtualAddress(segment.first.rawValue))")
      table.size(ByteCount(segment.size.rawValue))
      table.text(what)
      table.text(segment.kind == .busy ? place(segment.allocatedAt) : Line())
      table.end()
    }
    table.finish()
    print("\(count: spans, "span"), \(count: busy, "segment") in use, \(count: free) free")
  }
}
