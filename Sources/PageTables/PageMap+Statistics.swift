// The statistics of this layer.

import MemoryPrimitives

extension PageMap {
  /// Adds the rows of this layer to `statistics`.
  package func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "vm.pagetables.tables", .pages, .gauge, "page tables in use, the root included", context: state,
        read: { PageMap(from: $0).tableCount.rawValue }))
    statistics.add(
      Statistic(
        "vm.pagetables.spares", .pages, .gauge, "tables reserved so that large leaves can be split",
        context: state, read: { PageMap(from: $0).reservedTableCount.rawValue }))
    statistics.add(
      Statistic(
        "vm.pagetables.mapped", .pages, .gauge, "pages mapped, once for each mapping", context: state,
        read: { PageMap(from: $0).mappedCount.rawValue }))
  }

  private init(from context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }
}
