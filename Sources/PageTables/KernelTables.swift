// The kernel's own mappings: the image by segments, the direct map, and the aliases of the one in the
// other. What is not mapped here stays unmapped: page 0, and the identity map of the boot.

import MemoryPrimitives

/// Where the loader put a part of the image.
public struct ImageSegment: Sendable {
  public var address: VirtualAddress
  public var physical: PhysicalAddress
  public var count: PageCount

  public init(address: VirtualAddress, physical: PhysicalAddress, count: PageCount) {
    self.address = address
    self.physical = physical
    self.count = count
  }
}

/// The kernel's image: three segments, each of whole pages.
public struct KernelImage: Sendable {
  /// Read and execute.
  public var text: ImageSegment
  /// Read only.
  public var readOnlyData: ImageSegment
  /// Read and write: data, bss, stacks of the boot.
  public var data: ImageSegment

  public init(text: ImageSegment, readOnlyData: ImageSegment, data: ImageSegment) {
    self.text = text
    self.readOnlyData = readOnlyData
    self.data = data
  }
}

extension PageTables {
  /// Maps the image, by pages of 4 KiB, so that a page of it can become a guard page. Empty segments
  /// are passed over.
  public func mapImage(_ image: KernelImage) throws(PageTableError) {
    try map(image.text, .kernelText)
    do throws(PageTableError) {
      try map(image.readOnlyData, .kernelReadOnly)
    } catch {
      unmap(image.text)
      throw error
    }
    do throws(PageTableError) {
      try map(image.data, .kernelData)
    } catch {
      unmap(image.readOnlyData)
      unmap(image.text)
      throw error
    }
  }

  private func map(_ segment: ImageSegment, _ protection: Protection) throws(PageTableError) {
    guard segment.count > .zero else { return }
    try map(segment.address, to: segment.physical, count: segment.count, protection: protection)
  }

  private func unmap(_ segment: ImageSegment) {
    if segment.count > .zero { unmap(segment.address, count: segment.count) }
  }

  /// Maps a range of memory at its place in the direct map, by the largest leaves: readable, writable,
  /// not executable, global.
  public func mapDirect(_ start: PhysicalAddress, count: PageCount) throws(PageTableError) {
    try map(
      machine.directMap.virtualAddress(of: start), to: start, count: count, protection: .kernelData,
      leaves: .whole)
  }

  /// Takes the right to write from the aliases that the image's text and read-only data have in the
  /// direct map, which holds them. When it fails, nobody's rights have changed.
  public func protectAliases(of image: KernelImage) throws(PageTableError) {
    try protectAlias(of: image.text, .kernelReadOnly)
    do throws(PageTableError) {
      try protectAlias(of: image.readOnlyData, .kernelReadOnly)
    } catch {
      // Takes no table: the first call left boundaries at both ends.
      try protectAlias(of: image.text, .kernelData)
      throw error
    }
  }

  private func protectAlias(
    of segment: ImageSegment, _ protection: Protection
  ) throws(PageTableError) {
    guard segment.count > .zero else { return }
    try protect(
      machine.directMap.virtualAddress(of: segment.physical), count: segment.count, protection)
  }

  /// Adds the rows of this floor to `registry`.
  public func addStatistics(to registry: Statistics) {
    registry.add(
      Statistic(
        "vm.pagetables.tables", .pages, .gauge, "page tables in use, the root included", context: state,
        read: { PageTables(from: $0).tableCount.rawValue }))
    registry.add(
      Statistic(
        "vm.pagetables.spares", .pages, .gauge, "tables put by so that large leaves can be divided",
        context: state, read: { PageTables(from: $0).spareCount.rawValue }))
    registry.add(
      Statistic(
        "vm.pagetables.mapped", .pages, .gauge, "pages mapped, once for each mapping", context: state,
        read: { PageTables(from: $0).mappedCount.rawValue }))
  }

  private init(from context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }
}
