// Stacks: wired memory with an unmapped page below.

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

/// A stack of whole pages with an unmapped one below.
public struct KernelStack: Equatable, Sendable {
  /// The lowest address that is mapped: an access to the page below faults.
  public var bottom: VirtualAddress
  /// Its length, the guard page not counted.
  public var count: PageCount
  /// The first value of the stack pointer: behind the highest byte.
  public var top: VirtualAddress { bottom + count }
  /// The page that is not mapped.
  public var guardPage: VirtualAddress { VirtualAddress(bottom.rawValue - Page.size) }

  /// Describes a stack of `count` pages from `bottom` on.
  public init(bottom: VirtualAddress, count: PageCount) {
    self.bottom = bottom
    self.count = count
  }
}

extension KernelAddressSpace {
  /// Allocates a stack of `count` pages, its guard page not counted. Errors and costs as `allocateWired`.
  public func allocateStack(
    _ count: PageCount, priority: AllocationPriority = .normal, contents: InitialContents = .unknown,
    for owner: FrameOwner? = nil, at site: CallSite = .here
  ) throws(KernelSpaceError) -> KernelStack {
    let request = RangeRequest(
      kind: .stack, count: count, priority: priority, contents: contents, site: site, statedOwner: owner)
    guard count > .zero else { throw failed(.badConstraint, request) }
    guard count.rawValue < .max else { throw failed(.noAddressSpace, request) }
    let guardPage = try reserve(request)
    let stack = KernelStack(bottom: guardPage + PageCount.one, count: count)
    do throws(KernelSpaceError) {
      try back(stack.bottom, request, role: .stack)
    } catch {
      release(.stack, guardPage, request.addresses, site)
      throw failed(error, request)
    }
    self.count(.stack, mapped: count)
    return stack
  }

  /// Frees a stack, on which no thread runs any more. Fault reports as `freeWired`.
  public func freeStack(_ stack: KernelStack, at site: CallSite = .here) {
    guard unmap(stack.bottom, stack.count, RangeTagSet(RangeKind.stack.tag), site, visit: free) != nil
    else { return }
    release(.stack, stack.guardPage, stack.count + .one, site)
  }
}
