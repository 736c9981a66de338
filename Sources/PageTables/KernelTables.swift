// The kernel's own mappings: the image by segments, the direct map, and the aliases of the one in the
// other. What is not mapped here stays unmapped: page 0, and the identity map of the boot.

import MemoryPrimitives

/// Where the loader put a part of the image, and what may be done there.
public struct ImageSegment: Sendable {
  public var address: VirtualAddress
  public var physical: PhysicalAddress
  public var count: PageCount
  public var protection: Protection

  /// `count` pages at `address`, which lie in memory at `physical`.
  public init(
    address: VirtualAddress, physical: PhysicalAddress, count: PageCount, protection: Protection
  ) {
    self.address = address
    self.physical = physical
    self.count = count
    self.protection = protection
  }
}

/// The kernel's image: segments of whole pages that don't overlap. Empty ones are passed over, and what
/// lies between them (the guard pages of stacks) stays unmapped.
public typealias KernelImage = UnsafeBufferPointer<ImageSegment>

extension PageMap {
  /// Maps the image, by pages of 4 KiB, so that a page of it can become a guard page: all or nothing.
  public func mapImage(_ image: KernelImage) throws(PageTableError) {
    for index in 0..<image.count where image[index].count > .zero {
      let segment = image[index]
      do throws(PageTableError) {
        try map(
          segment.address, to: segment.physical, count: segment.count, protection: segment.protection)
      } catch {
        for mapped in 0..<index where image[mapped].count > .zero {
          unmap(image[mapped].address, count: image[mapped].count)
        }
        throw error
      }
    }
  }

  /// Maps a range of memory at its place in the direct map, by the largest leaves: readable, writable,
  /// not executable, global.
  public func mapDirect(_ start: PhysicalAddress, count: PageCount) throws(PageTableError) {
    try map(
      machine.directMap.virtualAddress(of: start), to: start, count: count, protection: .kernelData,
      leaves: .whole)
  }

  /// Takes the right to write from the aliases that the image's read-only and executable segments have
  /// in the direct map, which holds them. When it fails, nobody's rights have changed.
  public func protectAliases(of image: KernelImage) throws(PageTableError) {
    for index in 0..<image.count where isProtected(image[index]) {
      do throws(PageTableError) {
        try protectAlias(of: image[index], .kernelReadOnly)
      } catch {
        for changed in 0..<index where isProtected(image[changed]) {
          // Takes no table: the first call left boundaries at both ends.
          try protectAlias(of: image[changed], .kernelData)
        }
        throw error
      }
    }
  }

  private func isProtected(_ segment: ImageSegment) -> Bool {
    segment.count > .zero && !segment.protection.contains(.writable)
  }

  private func protectAlias(
    of segment: ImageSegment, _ protection: Protection
  ) throws(PageTableError) {
    try protect(
      machine.directMap.virtualAddress(of: segment.physical), count: segment.count, protection)
  }

  /// Adds the rows of this layer to `statistics`.
  public func register(in statistics: Statistics) {
    statistics.add(
      Statistic(
        "vm.pagetables.tables", .pages, .gauge, "page tables in use, the root included", context: state,
        read: { PageMap(from: $0).tableCount.rawValue }))
    statistics.add(
      Statistic(
        "vm.pagetables.spares", .pages, .gauge, "tables put by so that large leaves can be divided",
        context: state, read: { PageMap(from: $0).spareCount.rawValue }))
    statistics.add(
      Statistic(
        "vm.pagetables.mapped", .pages, .gauge, "pages mapped, once for each mapping", context: state,
        read: { PageMap(from: $0).mappedCount.rawValue }))
  }

  private init(from context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }
}
