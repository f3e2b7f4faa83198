// How the reference reads and addresses elements: widening without loss, and one head of a view.
#pragma once

#include <cstdint>
#include <type_traits>

#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// An element as Acc (float or double). 16-bit types go through float, which holds them exactly; a
/// double element stays a double.
template <class Acc, class T>
inline Acc widen(const T& value) {
  if constexpr (std::is_same<T, double>::value) {
    return static_cast<Acc>(value);
  } else {
    return static_cast<Acc>(static_cast<float>(value));
  }
}

/// The head_dim contiguous elements of one (sequence, token, head).
template <class T>
inline T* head_data(const heads_view<T>& view, int sequence, int token, int head) {
  return view.data + sequence * view.batch_stride + token * view.token_stride +
         head * view.head_stride;
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
