// Counts of a supply of tags, and those of all its arenas together for the registry of statistics.

import MemoryPrimitives

/// Tags and pages of a supply, at one moment.
package struct TagFigures: Equatable, Sendable {
  /// Tags that exist, used or not.
  package var total: UInt64
  /// Tags that no arena holds.
  package var free: UInt64
  /// Pages of tags, static ones included.
  package var pages: PageCount
  /// Pages that the supply was made with, and keeps.
  package var staticPages: PageCount
  /// Pages that the hash tables of arenas hold.
  package var hashPages: PageCount
}

extension Tags {
  /// Counts the tags and pages at this moment.
  package var figures: TagFigures {
    state.pool.withLock {
      TagFigures(
        total: $0.total, free: $0.free, pages: PageCount($0.pages), staticPages: PageCount($0.staticPages),
        hashPages: PageCount($0.hashPages))
    }
  }

  /// Adds the rows `vmem.…` to the registry: sums over all arenas of this supply, and its tags.
  package func register(in statistics: Statistics) {
    let context = UnsafeMutableRawPointer(storage)
    func row(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, unit, kind, about, context: context, read: read))
    }
    row("vmem.arenas", .objects, .gauge, "arenas") { Tags.sum($0) { _ in 1 } }
    row("vmem.segments", .objects, .gauge, "segments of all arenas, free and allocated") {
      Tags.sum($0) { $0.segments.value }
    }
    row("vmem.allocations", .requests, .counter, "requests granted") { Tags.sum($0) { $0.allocations.value } }
    row("vmem.frees", .events, .counter, "segments freed") { Tags.sum($0) { $0.frees.value } }
    row("vmem.failed", .requests, .counter, "requests refused, without those of layers above") {
      Tags.sum($0) { $0.failed.value &- $0.failedForCaller.value }
    }
    row("vmem.waits", .requests, .counter, "requests that slept") { Tags.sum($0) { $0.waits.value } }
    row("vmem.imports", .events, .counter, "spans imported from a source") {
      Tags.sum($0) { $0.imports.value }
    }
    row("vmem.releases", .events, .counter, "spans returned to a source") {
      Tags.sum($0) { $0.releases.value }
    }
    row("vmem.tags.total", .tags, .gauge, "boundary tags that exist") { Tags.of($0)?.figures.total ?? 0 }
    row("vmem.tags.free", .tags, .gauge, "boundary tags that no arena holds") {
      Tags.of($0)?.figures.free ?? 0
    }
    row("vmem.tags.pages", .pages, .gauge, "pages of boundary tags") {
      Tags.of($0)?.figures.pages.rawValue ?? 0
    }
    row("vmem.hash.pages", .pages, .gauge, "pages of hash tables") {
      Tags.of($0)?.figures.hashPages.rawValue ?? 0
    }
  }

  private static func of(_ context: UnsafeMutableRawPointer?) -> Tags? {
    context.map { Tags($0.assumingMemoryBound(to: TagsState.self)) }
  }

  private static func sum(
    _ context: UnsafeMutableRawPointer?, _ value: (borrowing ArenaState) -> UInt64
  ) -> UInt64 {
    var sum: UInt64 = 0
    of(context)?.forEachArena { sum &+= value($0.state) }
    return sum
  }
}
