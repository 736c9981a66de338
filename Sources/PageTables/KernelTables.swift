// The kernel's own mappings: the image by segments, the direct map, and the aliases of the one in the
// other. Page 0 and the identity map of the boot are not mapped here, so they are gone.

import MemoryPrimitives

/// A part of the image: its addresses and its rights.
public struct ImageSegment: Sendable {
  /// The first address.
  public var address: VirtualAddress
  /// The memory that the loader copied it to.
  public var physical: PhysicalAddress
  /// Its length.
  public var count: PageCount
  /// Its rights.
  public var protection: Protection

  /// Describes `count` pages at `address`, which lie in memory at `physical`.
  public init(
    address: VirtualAddress, physical: PhysicalAddress, count: PageCount, protection: Protection
  ) {
    self.address = address
    self.physical = physical
    self.count = count
    self.protection = protection
  }
}

/// The kernel's image: segments of whole pages that don't overlap. Empty ones are skipped. The pages between them
/// (the guard pages of stacks) stay unmapped.
public typealias KernelImage = UnsafeBufferPointer<ImageSegment>

extension PageMap {
  /// Maps the image, by pages of 4 KiB, so that a page of it can become a guard page: all or nothing.
  package func mapImage(_ image: KernelImage) throws(PageTableError) {
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
  package func mapDirect(_ start: PhysicalAddress, count: PageCount) throws(PageTableError) {
    try map(
      machine.directMap.virtualAddress(of: start), to: start, count: count, protection: .kernelData,
      leaves: .whole)
  }

  /// Write-protects the aliases that the image's read-only and executable segments have in the direct map. The direct
  /// map must hold them. Throws `noMemory` when a leaf can't be split; then no rights have changed.
  package func protectAliases(of image: KernelImage) throws(PageTableError) {
    for index in 0..<image.count where isProtected(image[index]) {
      do throws(PageTableError) {
        try protectAlias(of: image[index], .kernelReadOnly)
      } catch {
        for changed in 0..<index where isProtected(image[changed]) {
          // Needs no table: the first call left boundaries at both ends.
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
}
