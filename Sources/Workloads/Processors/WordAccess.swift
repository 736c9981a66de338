// How a workload of several threads reaches mapped memory by its address, as calls that cross the platform interface: each access
// is made by the processor that the caller runs on, with that processor's own translations.
//
// In the kernel that is an instruction; on the host a software processor for each thread. Nothing need be mapped at
// the address: then the access says so and nothing else happens.

import MemoryPrimitives
import Paging

/// Reads and writes of a word. An answer of 0 is success, any other one more than the number of a `PagingError`.
public struct WordAccess: PageAccess {
  public typealias Load =
    @convention(c) (UnsafeMutableRawPointer?, UInt64, UnsafeMutablePointer<UInt64>) -> UInt8
  public typealias Store = @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> UInt8

  let context: UnsafeMutableRawPointer?
  let loading: Load
  let storing: Store

  public init(_ context: UnsafeMutableRawPointer?, load: @escaping Load, store: @escaping Store) {
    self.context = context
    loading = load
    storing = store
  }

  public func load(_ address: VirtualAddress) throws(PagingError) -> UInt64 {
    var value: UInt64 = 0
    let answer = withUnsafeMutablePointer(to: &value) { loading(context, address.rawValue, $0) }
    if answer != 0 { throw PagingError(rawValue: answer - 1) ?? .notPageable }
    return value
  }
  public func store(_ address: VirtualAddress, _ value: UInt64) throws(PagingError) {
    let answer = storing(context, address.rawValue, value)
    if answer != 0 { throw PagingError(rawValue: answer - 1) ?? .notPageable }
  }
}
